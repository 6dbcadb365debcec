"""What words and vectors find together, and what a cross-encoder makes of it.

Papers: Cormack et al. 2009, Reciprocal Rank Fusion, https://doi.org/10.1145/1571941.1572114; Bruch et al. 2023, An
Analysis of Fusion Functions for Hybrid Retrieval, https://arxiv.org/abs/2210.11934 (alpha); Nogueira & Cho 2019,
Passage Re-ranking with BERT, https://arxiv.org/abs/1901.04085; Thakur et al. 2021, BEIR,
https://arxiv.org/abs/2104.08663 (BM25 as the baseline that dense models often do not reach).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import CachedEmbed, OutOfTime
from unitsphere.evaluation.retrieval import DEPTH, own_or_path, scored, vectors, without_own
from unitsphere.evaluation.score import joined
from unitsphere.search import fusion
from unitsphere.search.bm25 import BM25
from unitsphere.search.dense import search, unit
from unitsphere.search.fusion import Ranking
from unitsphere.search.rerank import rerank
from unitsphere.types import Embed, Held, Result, RetrievalSet

Score = Callable[[Sequence[tuple[str, str]]], np.ndarray]  # pairs (query, document) to (R) or (R, 1)


class Hybrid:
    """The measures of `Retrieval` for other ways of searching the same set, each a task of its own beside `<name>`:

        <name>-bm25       words alone
        <name>-hybrid     alpha * cosine + (1 - alpha) * bm25, each scaled to [0, 1] over a query's own 100 candidates
        <name>-rrf        sum of 1 / (c + rank) over the two rankings
        <name>-reranked   with a reranker: the first `depth` documents of one of the rankings in its order

    A setting is chosen on dev and then reported on test, so alpha by a few `unitsphere evaluate … split=dev
    eval.hybrid.alpha=0.3`; reciprocal ranks have nothing to choose. When the time is over while the cross-encoder
    reads, the others are reported.

    Args:
        split: "dev" or "test".
        own: The run's own queries of that split, scored where `path` is None.
        path: A BEIR folder, or the name of one in `UNITSPHERE_DATA`.
        max_length: Tokens that the embedder keeps of a text; None is the data's own setting.
        alpha: Weight of the dense score, in [0, 1].
        c: Of reciprocal ranks.
        k1, b, stemmer: Of BM25.
        reranker: A cross-encoder: a run, a folder or a hub id; None leaves `-reranked` out.
        cross_encoder: Called with `path`; returns what scores pairs.
        rerank_from: "dense", "bm25", "hybrid" or "rrf".
        depth: Documents that the cross-encoder reads a query.
        ignore_identical_ids: As for `Retrieval`; such a document is gone before rankings are put together.

    Raises:
        UsageError: A setting is out of range, there is nothing to search, or no cross-encoder is there.
    """

    def __init__(
        self,
        split: str,
        own: RetrievalSet | None = None,
        path: str | None = None,
        max_length: int | None = None,
        alpha: float = 0.5,
        c: float = 60,
        k1: float = 1.5,
        b: float = 0.75,
        stemmer: str | None = None,
        reranker: str | None = None,
        cross_encoder: Callable[..., Score] | None = None,
        rerank_from: str = "rrf",
        depth: int = 20,
        ignore_identical_ids: bool = False,
    ):
        if not 0 <= alpha <= 1:
            raise UsageError(f"eval.hybrid.alpha={alpha}: the weight of the dense score, in [0, 1], would fit.")
        if rerank_from not in ("dense", "bm25", "hybrid", "rrf"):
            raise UsageError(f"eval.hybrid.rerank_from={rerank_from}: dense, bm25, hybrid or rrf would fit.")
        if not 1 <= depth <= DEPTH:
            raise UsageError(f"eval.hybrid.depth={depth}: 1 to {DEPTH} would fit.")
        self.set = own_or_path(split, own, path, max_length)
        self.alpha, self.c, self.rerank_from, self.depth = alpha, c, rerank_from, depth
        self.ignore = ignore_identical_ids
        self.bm25 = partial(BM25, k1=k1, b=b, stemmer=stemmer)
        self.score = cross_encoder(path=reranker) if reranker and cross_encoder else None
        bm25 = f"bm25, k1 {k1:g}, b {b:g}, stemmer {stemmer}"
        self.how = {
            "dense": "cosine",
            "bm25": bm25,
            "hybrid": f"{alpha:g} cosine + {1 - alpha:g} ({bm25}), each from 0 to 1 over a query's first {DEPTH}",
            "rrf": f"reciprocal ranks of cosine and ({bm25}), c {c:g}",
        }
        scorer = f"cross-encoder {reranker}, {getattr(self.score, 'max_length', None)} tokens"
        self.how["reranked"] = f"{scorer}, over the first {depth} of {rerank_from}: {self.how[rerank_from]}"

    def held(self) -> Held:
        """Its queries; documents may be trained on."""
        return {self.set.name: list(self.set.queries.values())}

    def __call__(self, embed: Embed) -> Result:
        rankings = self._rankings(embed)
        late = None
        if self.score is not None:
            texts = list(self.set.queries.values()), list(self.set.corpus.values())
            try:
                rankings["reranked"] = rerank(*texts, rankings[self.rerank_from], self._in_time(embed), self.depth)
            except OutOfTime:
                late = {"stopped": f"{len(rankings) - 1} of {len(rankings)} tasks"}
        del rankings["dense"]  # which eval=retrieval reports
        queries, documents = list(self.set.queries), list(self.set.corpus)
        results = []
        for kind, ranking in rankings.items():
            run = {
                query: {documents[row]: float(score) for score, row in zip(*found, strict=True) if row >= 0}
                for query, *found in zip(queries, *ranking, strict=True)
            }
            task = f"{self.set.name}-{kind}"
            result = scored(task, run, self.set, ignore=self.ignore)
            results.append(replace(result, protocol={task: {**result.protocol[task], "similarity": self.how[kind]}}))
        whole = joined(results)
        if late is None:
            return replace(whole, primary=results[-1].primary)
        task = f"{self.set.name}-reranked"
        return replace(whole, primary=f"{task}/mrr@10", protocol={**whole.protocol, task: late})

    def _rankings(self, embed: Embed) -> dict[str, Ranking]:
        d = vectors(embed, list(self.set.corpus.values()), "document", self.set)
        q = vectors(embed, list(self.set.queries.values()), "query", self.set)
        both = [self._own_left_out(search(unit(q), unit(d), DEPTH + self.ignore)), self._lexical]
        return {
            "dense": both[0],
            "bm25": both[1],
            "hybrid": fusion.weighted(both, [self.alpha, 1 - self.alpha], DEPTH),
            "rrf": fusion.reciprocal_rank(both, DEPTH, self.c),
        }

    def _in_time(self, embed: Embed) -> Score:
        """The cross-encoder under the evaluator's clock, where `embed` has one (see `CachedEmbed`)."""
        score = self.score
        assert score is not None
        if not isinstance(embed, CachedEmbed):
            return score

        def in_slices(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
            return np.concatenate([np.empty(0), *(score(some).reshape(-1) for some in embed.slices(pairs))])

        return in_slices

    @cached_property
    def _lexical(self) -> Ranking:
        """What words find, whatever the model."""
        index, queries = self.bm25(self.set.corpus.values()), list(self.set.queries.values())
        return self._own_left_out(index.search(queries, DEPTH + self.ignore))

    def _own_left_out(self, ranking: Ranking) -> Ranking:
        return without_own(ranking, list(self.set.queries), list(self.set.corpus)) if self.ignore else ranking
