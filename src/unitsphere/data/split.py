"""Queries of one's own to score on, taken out of training pairs and kept apart from what is left of them.

Papers: Thakur et al. 2021, BEIR, https://arxiv.org/abs/2104.08663 (the layout of the folder); Lewis et al. 2020,
https://arxiv.org/abs/2008.02637 (what scores are worth where test and training overlap).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from unitsphere.data.rows import COLUMNS, Rows
from unitsphere.errors import UsageError
from unitsphere.formats import beir
from unitsphere.similar import Same
from unitsphere.types import RetrievalSet

FIFTHS = 5


@dataclass(frozen=True)
class Division:
    """What became of the rows.

    Attributes:
        rows: All of them.
        held: Split -> numbers of its rows.
        train: Numbers of the rows left for training.
        dropped: Reason -> how many rows are in neither.
        strata: Stratum -> how many queries it has, and how many of them each split took.
    """

    rows: Rows
    held: Mapping[str, list[int]]
    train: list[int]
    dropped: Mapping[str, int]
    strata: Mapping[str, Mapping[str, int]]


def divide(
    rows: Rows, counts: Mapping[str, int], same: Mapping[str, Same], stratify: str | None = None, seed: int = 1
) -> Division:
    """Draw queries for each split, and leave out of training what says the same.

    A query is a distinct anchor, and all of its rows move with it. Each stratum gives queries in proportion to its
    size. A row is dropped where its anchor or its positive is the same as a query drawn: trained on it, a model would
    have seen the query (as a paraphrase, or as the other side of a pair that is stored both ways). Splits drawn later
    take no query that has such a row. The answer of a query drawn stays a positive of other, different queries.

    Args:
        rows: Pairs.
        counts: Split -> how many queries; the first one draws first.
        same: Reason -> what counts as the same text; the first that applies is counted.
        stratify: A column of the rows; None is the length of the query, in fifths.
        seed: Of the draw.

    Raises:
        UsageError: There are no pairs, no such column, too few different queries, or nothing is left to train on.
    """
    if rows.positive is None or rows.score is not None:
        raise UsageError("split needs pairs, an anchor and a positive, without scores: data=pairs or data=triplets")
    draw, whole = np.random.default_rng(seed), strata(rows, stratify)
    left, train = dict(whole), list(range(len(rows)))
    held: dict[str, str] = {}  # query -> split
    same_queries: dict[str, str] = {}  # query -> why it is dropped
    same_answers: dict[str, str] = {}  # positive -> why its rows are
    for split, count in counts.items():
        if count >= len(left):
            same_too = len(whole) - len(left) - len(held)
            more = f"; {same_too} are the same as one drawn, or are answered so" if same_too else ""
            raise UsageError(
                f"{split} asks for {count} queries and training needs some, and of {len(whole)} different ones "
                f"{len(left)} are left{more}. Ask for fewer, or raise near"
            )
        chosen = _drawn(left, count, draw)
        held |= dict.fromkeys(chosen, split)
        train = [i for i in train if rows.anchor[i] not in chosen]
        same_queries |= _alike(chosen, dict.fromkeys(rows.anchor[i] for i in train), same)
        train = [i for i in train if rows.anchor[i] not in same_queries]
        same_answers |= _alike(chosen, dict.fromkeys(rows.positive[i] for i in train), same)
        clean = {rows.anchor[i] for i in train} - {rows.anchor[i] for i in train if rows.positive[i] in same_answers}
        left = {query: stratum for query, stratum in left.items() if query in clean}
        train = [i for i in train if rows.positive[i] not in same_answers]
    if not train:
        raise UsageError("no row is left to train on: all are the same as a query drawn. Ask for fewer, or raise near")
    why = [
        None if anchor in held else same_queries.get(anchor) or same_answers.get(p)
        for anchor, p in zip(rows.anchor, rows.positive, strict=True)
    ]
    return Division(
        rows,
        {split: [i for i, query in enumerate(rows.anchor) if held.get(query) == split] for split in counts},
        train,
        {reason: why.count(reason) for reason in same},
        _taken(whole, held, counts),
    )


def strata(rows: Rows, column: str | None) -> dict[str, str]:
    """Query -> its stratum: the value of `column` in its first row, or its length, in fifths of the queries.

    Raises:
        UsageError: The rows have no such column.
    """
    queries = list(dict.fromkeys(rows.anchor))
    if column is None:
        size = np.array([len(query) for query in queries])
        edges = np.unique(np.quantile(size, np.arange(1, FIFTHS) / FIFTHS, method="lower"))
        names = [*(f"up to {edge} characters" for edge in edges), "longer"]
        return {query: names[i] for query, i in zip(queries, np.searchsorted(edges, size), strict=True)}
    fitting = [name for name in ("label", "language", "task") if getattr(rows, name) is not None]
    if column not in fitting:
        raise UsageError(
            f"stratify={column}: the data has {', '.join(fitting) or 'no column that fits'}. Name one with "
            "+data.columns.label=… and stratify=label (or language), or leave it out: by length of the query"
        )
    values: dict[str, str] = {}
    for query, value in zip(rows.anchor, getattr(rows, column), strict=True):
        values.setdefault(query, value)
    return values


def write(division: Division, folder: Path, about: Mapping[str, Any], documents: Sequence[str] = ()) -> dict[str, Any]:
    """Write corpus.jsonl, queries.jsonl, qrels/, train.jsonl and split.json; the folder appears whole or not at all.

    The corpus is `documents` and every positive and negative of all rows, those of training included. Instructions stay
    with the rows of training; a BEIR folder has no place for those of queries and documents, and split.json says so.

    Args:
        division: What to write.
        folder: Must not be there.
        about: More for split.json.
        documents: Texts of the corpus, judged or not.

    Returns:
        What is in split.json.

    Raises:
        UsageError: The folder is there.
    """
    if folder.exists():
        raise UsageError(f"{folder} is there already; out= names a new folder.")
    rows, train = division.rows, division.rows.take(division.train)
    negatives = [text for several in rows.negative or () for text in several]
    texts = dict.fromkeys([*documents, *(rows.positive or ()), *negatives])
    numbered = {text: f"d{i}" for i, text in enumerate(texts)}
    asked = {split: [(rows.anchor[i], (rows.positive or ())[i]) for i in held] for split, held in division.held.items()}
    queries = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(q for pairs in asked.values() for q, _ in pairs))}
    answers = {answer for pairs in asked.values() for _, answer in pairs}
    corpus = {i: text for text, i in numbered.items()}
    sets = {}
    for split, pairs in asked.items():
        qrels: dict[str, dict[str, int]] = {queries[query]: {} for query, _ in pairs}
        for query, answer in pairs:
            qrels[queries[query]][numbered[answer]] = 1
        sets[split] = RetrievalSet(folder.name, corpus, {queries[query]: query for query, _ in pairs}, qrels)
    given = {name: values for name in COLUMNS if (values := getattr(train, name)) is not None}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary) / folder.name
        beir.write(work, sets)
        _lines(work / "train.jsonl", (dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)))
        report = {
            **about,
            "rows": {"rows": len(rows), "sha256": rows.fingerprint},
            "documents": len(numbered),
            **{
                split: {"queries": len({rows.anchor[i] for i in held}), "rows": len(held)}
                for split, held in division.held.items()
            },
            "train": {"rows": len(train), "sha256": train.fingerprint},
            "dropped": dict(division.dropped),
            "without_instruction": [column for column in ("anchor", "positive") if _instructed(rows, column)],
            "train_rows_with_an_answer": sum(text in answers for text in train.positive or ()),
            "strata": {stratum: dict(taken) for stratum, taken in division.strata.items()},
            "files": {
                str(file.relative_to(work)): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in sorted(work.rglob("*.*"))
            },
        }
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        (work / "split.json").write_text(text, encoding="utf-8")
        work.rename(folder)
    return report


def _drawn(strata_of: Mapping[str, str], count: int, draw: np.random.Generator) -> dict[str, None]:
    """`count` queries; each stratum has its share, rounded by largest remainder."""
    members: dict[str, list[str]] = {}
    for query, stratum in strata_of.items():
        members.setdefault(stratum, []).append(query)
    exact = np.array([len(of_stratum) for of_stratum in members.values()]) * count / len(strata_of)
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: count - share.sum()]] += 1
    return dict.fromkeys(
        of_stratum[i]
        for of_stratum, n in zip(members.values(), share, strict=True)
        for i in sorted(draw.choice(len(of_stratum), n, replace=False))
    )


def _alike(queries: Iterable[str], others: Iterable[str], same: Mapping[str, Same]) -> dict[str, str]:
    """Those of the others that are the same as a query -> the first reason."""
    queries, others = list(queries), list(others)
    found: dict[str, str] = {}
    for reason, sense in same.items():
        left = [text for text in others if text not in found]
        found |= {text: reason for texts in sense.matches(queries, left).values() for text in texts}
    return found


def _taken(whole: Mapping[str, str], held: Mapping[str, str], counts: Iterable[str]) -> dict[str, dict[str, int]]:
    size, taken = Counter(whole.values()), Counter((whole[query], split) for query, split in held.items())
    return {stratum: {"queries": size[stratum]} | {s: taken[stratum, s] for s in counts} for stratum in sorted(size)}


def _instructed(rows: Rows, column: str) -> bool:
    """Whether texts of the column have instructions."""
    return any(before is not None for before in getattr(rows, f"{column}_instruction") or ())


def _lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
