"""Where hard negatives come from: lexical search, a model's own search, or, as a control, chance.

Papers: Karpukhin et al. 2020, DPR, https://arxiv.org/abs/2004.04906 (BM25 negatives); Xiong et al. 2020, ANCE,
https://arxiv.org/abs/2007.00808 (a model's own); Moreira et al. 2024, NV-Retriever, https://arxiv.org/abs/2407.15831.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.mining.candidates import Found, lowest
from unitsphere.search import bm25
from unitsphere.search.dense import unit
from unitsphere.search.index import Index
from unitsphere.search.vectors import VectorFile
from unitsphere.types import Embed

BLOCK = 16384


class Source(ABC):
    """What the sources share.

    `reads_model` says whether it searches with the model that is given.

    Args:
        quota: Negatives a query from this source.
        first: The best rank, from 1, that may be taken, counted without the query's positives: skipping the first
            ranks skips most of the documents that are positives in truth.
        last: The worst.

    Raises:
        UsageError: The ranks or the quota make no sense.
    """

    name: str
    reads_model = False

    def __init__(self, quota: int = 1, first: int = 1, last: int = 100):
        if not 1 <= first <= last or quota < 1:
            raise UsageError(
                f"source.{self.name}: quota={quota}, first={first}, last={last}; 1 <= first <= last and a quota of 1 "
                "or more would fit."
            )
        self.quota, self.first, self.last = quota, first, last

    @abstractmethod
    def attach(
        self,
        documents: Sequence[str],
        embed: Embed | None,
        folder: Path,
        max_length: int | None,
        vectors: Iterable[np.ndarray] = (),
    ) -> None:
        """Read the corpus, once.

        Args:
            documents: Its texts.
            embed: The model that was given, if one was.
            folder: For files that are too large for memory; whoever made it removes it.
            max_length: Tokens kept of a text; None is the model's limit.
            vectors: What the model makes of the first documents, in blocks (n, D), where that is known; the rest is
                embedded.
        """

    @abstractmethod
    def find(self, queries: Sequence[str], labelled: Sequence[np.ndarray], k: int) -> Found:
        """The first `k` documents for each query, positives among them.

        Args:
            queries: Q texts.
            labelled: The corpus rows of each query's positives.
            k: K, at most the size of the corpus.
        """


class Lexical(Source):
    """BM25 (see `search.bm25`). A positive that shares no word with its query has no score to be held against.

    Args:
        quota, first, last: As for every source.
        k1, b, stemmer: Of BM25.
    """

    name = "bm25"

    def __init__(
        self,
        quota: int = 1,
        first: int = 1,
        last: int = 100,
        k1: float = 1.5,
        b: float = 0.75,
        stemmer: str | None = None,
    ):
        super().__init__(quota, first, last)
        self.settings: dict[str, Any] = {"k1": k1, "b": b, "stemmer": stemmer}

    def attach(
        self,
        documents: Sequence[str],
        embed: Embed | None,
        folder: Path,
        max_length: int | None,
        vectors: Iterable[np.ndarray] = (),
    ) -> None:
        self._documents, self._index = documents, bm25.BM25(documents, **self.settings)

    def find(self, queries: Sequence[str], labelled: Sequence[np.ndarray], k: int) -> Found:
        ranked, positive = [], []
        for query, rows in zip(queries, labelled, strict=True):
            scores = self._index.scores(query)
            ranked.append(bm25.top(scores, k))
            positive.append(lowest(scores[rows][scores[rows] > 0]))
        scores, rows = (np.stack([pair[i] for pair in ranked]) for i in (0, 1))
        return Found(self.name, queries, self._documents, rows, scores, labelled, np.array(positive))


class Dense(Source):
    """Cosine of the given model's vectors.

    Args:
        quota, first, last: As for every source.
        index: Exact, or approximate where the corpus is large (see `search.index`).
    """

    name = "dense"
    reads_model = True

    def __init__(self, index: Index, quota: int = 1, first: int = 1, last: int = 100):
        super().__init__(quota, first, last)
        self.index = index

    def attach(
        self,
        documents: Sequence[str],
        embed: Embed | None,
        folder: Path,
        max_length: int | None,
        vectors: Iterable[np.ndarray] = (),
    ) -> None:
        if embed is None:
            raise UsageError("source=dense searches with a model: model=… (a run, a folder or a hub id)")
        self._documents, self._embed, self._max_length = documents, embed, max_length
        self._vectors = VectorFile.written(folder / "vectors.f32", self._blocks(vectors))
        self.index.build(self._vectors)

    def _blocks(self, known: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        first = 0
        for block in known:
            first += len(block)
            yield unit(block)
        for start in range(first, len(self._documents), BLOCK):
            some = [self._documents[i] for i in range(start, min(start + BLOCK, len(self._documents)))]
            yield unit(self._embed(some, "document", self._max_length))

    def find(self, queries: Sequence[str], labelled: Sequence[np.ndarray], k: int) -> Found:
        q = unit(self._embed(queries, "query", self._max_length))
        scores, rows = self.index.search(q, k)
        own = [self._vectors.take(at) @ vector for vector, at in zip(q, labelled, strict=True)]
        positive = np.array([lowest(of_query) for of_query in own])
        return Found(self.name, queries, self._documents, rows, scores, labelled, positive)


class Random(Source):
    """Documents at random, each at most once a query: the control, and what in-batch negatives are like.

    Args:
        quota: Negatives a query.
        seed: Of the draw, which is a function of it and of the query.
    """

    name = "random"

    def __init__(self, quota: int = 1, seed: int = 0):
        super().__init__(quota, 1, 10 * quota)
        self.seed = seed

    def attach(
        self,
        documents: Sequence[str],
        embed: Embed | None,
        folder: Path,
        max_length: int | None,
        vectors: Iterable[np.ndarray] = (),
    ) -> None:
        self._documents = documents

    def find(self, queries: Sequence[str], labelled: Sequence[np.ndarray], k: int) -> Found:
        count = len(self._documents)
        draws = (np.random.default_rng([self.seed, crc32(query.encode("utf-8", "surrogatepass"))]) for query in queries)
        rows = np.stack([drawn(draw, count, min(k, count)) for draw in draws])
        nothing = np.full(rows.shape, np.nan)
        return Found(self.name, queries, self._documents, rows, nothing, labelled, nothing[:, 0])


def drawn(chance: np.random.Generator, count: int, k: int) -> np.ndarray:
    """k different numbers below `count`; fewer of them are the first of these, so that a query's do not depend on how
    deep others had to look."""
    found: dict[int, None] = {}
    while len(found) < k:
        found |= dict.fromkeys(chance.integers(count, size=64).tolist())
    return np.array(list(found)[:k], dtype=np.int64)
