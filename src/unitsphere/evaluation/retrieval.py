"""Recall, MRR, NDCG and MAP of search over a corpus.

Papers: Thakur et al. 2021, BEIR, https://arxiv.org/abs/2104.08663; Van Gysel & de Rijke 2018, pytrec_eval,
https://arxiv.org/abs/1805.01597 (which computes all measures here).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytrec_eval

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.formats import beir
from unitsphere.formats.fingerprint import fingerprint
from unitsphere.search.dense import Exact, unit
from unitsphere.search.fusion import Ranking
from unitsphere.search.index import Index
from unitsphere.types import Embed, Held, Result, RetrievalSet

MEASURES = {
    "recall@1": "recall_1",
    "recall@5": "recall_5",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "ndcg@10": "ndcg_cut_10",
    "map@100": "map_cut_100",
}
DEPTH = 100


class Retrieval:
    """Searches the documents of a retrieval set for its queries, by cosine.

    Measures are means over queries, in [0, 1]: recall@k = |relevant in the first k| / |relevant| (not hit rate);
    mrr@10 = 1 / rank of the first relevant one, 0 beyond rank 10; ndcg@10 with the grades as gains; map@100.
    Relevant is a grade of 1 or more. Equal scores are ordered by document id, descending, as trec_eval does; which of
    the documents that are equal at rank 100 are in is left to Faiss.

    The queries are embedded in the order of the SHA-256 of their ids, after the documents. So those that were done when
    the time was over are a random sample, the same one for every model, and their means estimate those of all.

    Args:
        split: "dev" or "test".
        own: The run's own queries of that split, scored where `path` is None.
        path: A BEIR folder, or the name of one in `UNITSPHERE_DATA`.
        max_length: Tokens kept; None is the data's own setting, and for `path` the encoder's limit.
        index: What searches, exact where None is given (see `search.index`); the protocol names it.
        ignore_identical_ids: Leave the document that has a query's own id out of what is found for it, as BEIR's
            evaluation does, and mteb's of ArguAna, Quora and FiQA: there the query is itself in the corpus. The
            protocol names it.

    Raises:
        UsageError: There is nothing to search.
    """

    def __init__(
        self,
        split: str,
        own: RetrievalSet | None = None,
        path: str | None = None,
        max_length: int | None = None,
        index: Index | None = None,
        ignore_identical_ids: bool = False,
    ):
        self.set = own_or_path(split, own, path, max_length)
        self.ignore = ignore_identical_ids
        self.index = index or Exact()

    def held(self) -> Held:
        """Its queries; documents may be trained on."""
        return {self.set.name: list(self.set.queries.values())}

    def __call__(self, embed: Embed) -> Result:
        documents = list(self.set.corpus)
        queries = sorted(self.set.queries, key=lambda query: hashlib.sha256(query.encode()).digest())
        d = vectors(embed, [self.set.corpus[i] for i in documents], "document", self.set)
        try:
            q = vectors(embed, [self.set.queries[i] for i in queries], "query", self.set)
        except OutOfTime as stopped:
            if not stopped.done:
                raise
            q = np.stack(stopped.done)
        self.index.build(unit(d))
        scores, rows = self.index.search(unit(q), DEPTH + self.ignore)
        if self.ignore:
            scores, rows = without_own((scores, rows), queries[: len(q)], documents)
        found = {
            query: {documents[row]: float(score) for score, row in zip(*ranking, strict=True) if row >= 0}
            for query, *ranking in zip(queries[: len(q)], scores, rows, strict=True)
        }
        in_order = {query: found[query] for query in self.set.queries if query in found}
        return scored(self.set.name, in_order, self.set, self.index.name, self.ignore)


def without_own(ranking: Ranking, queries: Sequence[str], documents: Sequence[str]) -> Ranking:
    """The first `DEPTH` of each ranking, without the document that has the query's own id.

    Args:
        ranking: Scores (Q, K) and rows (Q, K), best first.
        queries: Q ids.
        documents: N ids.
    """
    (scores, rows), at = ranking, {document: row for row, document in enumerate(documents)}
    own = rows == np.array([at.get(query, -1) for query in queries])[:, None]  # (Q, K)
    order = np.argsort(own, axis=1, kind="stable")[:, :DEPTH]
    left = np.where(own, -np.inf, scores).astype(np.float32), np.where(own, -1, rows)
    return np.take_along_axis(left[0], order, axis=1), np.take_along_axis(left[1], order, axis=1)


def scored(
    task: str, run: Mapping[str, Mapping[str, float]], of: RetrievalSet, index: str = "exact", ignore: bool = False
) -> Result:
    """The measures of a search of a set, with a line a query, the worst of them as texts, and the protocol.

    Args:
        task: What it is reported as.
        run: Query id -> document id -> score.
        of: What was searched.
        index: With what.
        ignore: Whether documents with the query's own id were left out.
    """
    measured = measures(run, of.qrels)
    items = measured.merge(places(run, of.qrels), on="query")
    return Result(
        metrics={f"{task}/{m}": float(measured[m].mean()) for m in measured.columns if m != "query"},
        primary=f"{task}/mrr@10",
        items={task: items, f"{task}-worst": worst(items, of)},
        protocol={task: stamp(of, len(run), index, ignore)},
    )


def stamp(of: RetrievalSet, scored: int, index: str, ignore: bool = False) -> dict[str, Any]:
    """The protocol of a search of a set, by an index of that name, with `scored` of its queries."""
    empty = sum(not text.strip() for texts in (of.corpus, of.queries) for text in texts.values())
    stopped = f"{scored:,} of {len(of.queries):,} queries" if scored < len(of.queries) else None
    noted = {"unanswerable": of.unanswerable, "empty": empty, "stopped": stopped}
    fixed = {
        "kind": "retrieval",
        "similarity": "cosine",
        "search": f"{index}, {DEPTH} deep",
        "ignore_identical_ids": ignore,
        "max_length": of.max_length,
        "queries": scored,
        "documents": len(of.corpus),
        "sha256": fingerprint(of)[:16],
    }
    return fixed | {key: value for key, value in noted.items() if value}


def own_or_path(split: str, own: RetrievalSet | None, path: str | None, max_length: int | None) -> RetrievalSet:
    """The retrieval set at `path`, else the run's own, with its texts cut to `max_length` where that is given.

    Raises:
        UsageError: Neither is there.
    """
    chosen = own if path is None else beir.read(path, split)
    if chosen is None:
        raise UsageError(
            f"eval: the data has no {split} queries to score. Choose data with some (docstrings, pairs, triplets, "
            "beir), a BEIR folder with eval=retrieval eval.retrieval.path=…, or score something else, e.g. eval=sts"
        )
    return replace(chosen, max_length=max_length or chosen.max_length)


def vectors(embed: Embed, texts: Sequence[str], role: str, of: RetrievalSet) -> np.ndarray:
    """The vectors (R, D) of a set's texts, each with its own instruction where the set has one for it.

    Raises:
        OutOfTime: With those of the first texts, as many as there was time for.
    """
    own = [of.instructions.get((role, text)) for text in texts]
    parts: dict[str | None, Iterator[np.ndarray]] = {}
    late = None
    for prompt in dict.fromkeys(own):
        asked = [text for text, of_text in zip(texts, own, strict=True) if of_text == prompt]
        try:
            parts[prompt] = iter(embed(asked, role, of.max_length, prompt))
        except OutOfTime as stopped:
            parts[prompt], late = iter(stopped.done), stopped
    rows: list[np.ndarray] = []
    for prompt in own:
        row = next(parts[prompt], None)
        if row is None:
            break
        rows.append(row)
    if late is not None:
        raise OutOfTime(rows) from late
    return np.stack(rows)


def places(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """Where each query found what it looks for.

    Returns:
        Columns query, rank (of the first relevant document; not a number where none was found) and found (the id of the
        first document that is not relevant; none where every one is).
    """
    lines = []
    for query, scores in run.items():
        ranked = [d for d, _ in sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)]
        right = [qrels[query].get(d, 0) >= 1 for d in ranked]
        rank, wrong = (right.index(kind) if kind in right else None for kind in (True, False))
        lines.append((query, None if rank is None else rank + 1.0, None if wrong is None else ranked[wrong]))
    return pd.DataFrame(lines, columns=["query", "rank", "found"]).astype({"rank": float})


def worst(items: pd.DataFrame, of: RetrievalSet, count: int = 50) -> pd.DataFrame:
    """The queries with the lowest mrr@10, with what they look for and what was found instead.

    Args:
        items: One row a query: its measures and `places`.
        of: Has the texts.
        count: How many.

    Returns:
        Columns query, text, relevant, rank, found (its text) and mrr@10; texts are cut at 300 characters.
    """
    chosen = items.sort_values("mrr@10", kind="stable").head(count)
    right = [next((d for d, grade in of.qrels[query].items() if grade >= 1), "") for query in chosen["query"]]
    texts = {
        "text": [of.queries[query] for query in chosen["query"]],
        "relevant": [of.corpus.get(document, "") for document in right],
        "found": [of.corpus.get(document, "") for document in chosen["found"]],
    }
    cut = {column: [text[:300] for text in of_column] for column, of_column in texts.items()}
    return chosen.assign(**cut)[["query", "text", "relevant", "rank", "found", "mrr@10"]].reset_index(drop=True)


def measures(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """One row a query: `query` and the measures.

    Args:
        run: Query id -> document id -> score.
        qrels: Query id -> document id -> grade.
    """
    full = pytrec_eval.RelevanceEvaluator(qrels, set(MEASURES.values())).evaluate(run)
    ten = {
        query: dict(sorted(ranking.items(), key=lambda item: (item[1], item[0]), reverse=True)[:10])
        for query, ranking in run.items()
    }
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(ten)
    table = [
        {"query": q, "mrr@10": first[q]["recip_rank"]} | {ours: full[q][theirs] for ours, theirs in MEASURES.items()}
        for q in run
    ]
    return pd.DataFrame(table)
