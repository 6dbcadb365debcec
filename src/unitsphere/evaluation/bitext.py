"""Bitext retrieval: a sentence's translation among all sentences of the other language.

Papers: Artetxe & Schwenk 2019, https://arxiv.org/abs/1812.10464 (the Tatoeba test); Zweigenbaum et al. 2017, BUCC,
https://aclanthology.org/W17-2512.
Relations: mteb's BitextMining scores by position, so that of two equal sentences one is wrong; here both are right.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.evaluation.labelled import fingerprint
from unitsphere.evaluation.retrieval import measures, unit
from unitsphere.formats.records import BadRow, records
from unitsphere.search.dense import search
from unitsphere.types import Embed, Result, RetrievalSet

MEASURES = ("recall@1", "recall@5", "mrr@10")
DEPTH = 10


class Bitext:
    """Recall@1, recall@5 and MRR@10 of exact search by cosine, each language asking the other; and the mean accuracy.

    Equal sentences of a side are one. What is right for a sentence is every translation that the file has of it, so
    recall@k = |right in the first k| / |right| as in retrieval; `bitext/accuracy` is the share of sentences whose
    nearest is right, a mean over the directions. Both sides are embedded in the role "symmetric": neither answers the
    other, and e5 wants "query: " before both. When the time is over, the directions that are finished are reported,
    without the mean.

    The files of the default are the dev files of their data sets, because nothing else is there; they are in `tests`
    and report. Whoever chooses by them (`eval.bitext.dev`) has nothing left to report.

    Args:
        split: "dev" or "test".
        tests: `<language>-<language>` -> file inside `path`: two columns without a header, or jsonl with the two
            languages as keys.
        dev: Likewise for dev; empty scores nothing there, and another evaluator, or `select=last`, chooses.
        path: A folder; None is `UNITSPHERE_DATA`.
        max_length: Tokens kept; None is the encoder's limit.
        own: Not used; every evaluator is offered the run's own queries.

    Raises:
        UsageError: A file is missing or malformed, or its name is not that of two languages.
    """

    def __init__(
        self,
        split: str,
        tests: Mapping[str, str],
        dev: Mapping[str, str],
        path: str | None = None,
        max_length: int | None = None,
        own: RetrievalSet | None = None,
    ):
        folder = Path(path).expanduser() if path else paths.data()
        files = tests if split == "test" else dev
        if files and folder is None:
            raise UsageError(
                "eval=bitext: name the folder that its files are in: eval.bitext.path=… or UNITSPHERE_DATA"
            )
        self.pairs = {name: read(name, folder / file) for name, file in files.items() if folder is not None}
        self.max_length = max_length

    def held(self) -> dict[str, list[tuple[str, str]]]:
        """The two sentences of each pair, together: a training row that has both would be the answer."""
        return {f"bitext-{name}": list(zip(p.iloc[:, 0], p.iloc[:, 1], strict=True)) for name, p in self.pairs.items()}

    def __call__(self, embed: Embed) -> Result:
        items: dict[str, pd.DataFrame] = {}
        stamps: dict[str, dict[str, Any]] = {}
        asked = [(pairs, a, b) for name, pairs in self.pairs.items() for a, b in permutations(name.split("-"))]
        if not asked:
            return Result({}, "", {}, {})
        stamp: dict[str, Any] = {
            "kind": "bitext",
            "similarity": "cosine",
            "search": "exact, among the distinct sentences of the other side",
            "role": "query on both sides",
            "max_length": self.max_length,
        }
        for pairs, a, b in asked:
            try:
                table = self._found(embed, pairs[a].tolist(), pairs[b].tolist())
            except OutOfTime:
                if not items:
                    raise
                break
            items[f"bitext-{a}-{b}"] = table
            stamps[f"bitext-{a}-{b}"] = stamp | {"sentences": len(table), "sha256": fingerprint(pairs[[a, b]])}
        metrics = {f"{task}/{m}": float(table[m].mean()) for task, table in items.items() for m in MEASURES}
        whole = stamp | {"tasks": list(items), "sha256": fingerprint(*self.pairs.values())}
        if len(items) == len(asked):
            right = [float((table["mrr@10"] == 1).mean()) for table in items.values()]
            metrics["bitext/accuracy"] = sum(right) / len(right)
        else:
            whole["stopped"] = f"{len(items)} of {len(asked)} tasks"
        return Result(metrics, "bitext/accuracy", items, stamps | {"bitext": whole})

    def _found(self, embed: Embed, asked: Sequence[str], among: Sequence[str]) -> pd.DataFrame:
        """One row a distinct sentence of `asked`: its text as `query`, and the measures of its search."""
        queries, documents = list(dict.fromkeys(asked)), list(dict.fromkeys(among))
        number = {text: str(i) for i, text in enumerate(documents)}
        right: dict[str, dict[str, int]] = {text: {} for text in queries}
        for text, translation in zip(asked, among, strict=True):
            right[text][number[translation]] = 1
        q, d = (unit(embed(texts, "symmetric", self.max_length)) for texts in (queries, documents))
        run = {
            text: {str(row): float(score) for score, row in zip(*ranking, strict=True)}
            for text, *ranking in zip(queries, *search(q, d, DEPTH), strict=True)
        }
        return measures(run, right)[["query", *MEASURES]]


def read(name: str, file: Path) -> pd.DataFrame:
    """One file as two columns named by its languages; blanks around a sentence are dropped.

    Raises:
        UsageError: The file is missing, empty or malformed, or `name` is not `<language>-<language>`.
    """
    languages = name.split("-")
    if len(set(languages)) != 2 or not all(languages):
        raise UsageError(f"eval.bitext: {name!r} should name two languages, e.g. en-zh.")
    if not file.is_file():
        raise UsageError(f"eval=bitext: {file} is missing. Name a folder that has it: eval.bitext.path=…")
    keys = languages if ".jsonl" in file.suffixes else (0, 1)
    rows = []
    for number, record in records(str(file), header=False):
        pair = [] if isinstance(record, BadRow) else [str(record.get(key) or "").strip() for key in keys]
        if not pair or not all(pair):
            raise UsageError(f"{file}, row {number}: two sentences expected ({keys[0]}, {keys[1]}), found {record}")
        rows.append(pair)
    if len(rows) < 2:
        raise UsageError(f"{file}: {len(rows)} pairs; a search needs two.")
    return pd.DataFrame(rows, columns=languages)
