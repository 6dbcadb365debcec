"""What makes a candidate unfit as a negative: most of what ranks highest without a label is a positive nobody labelled.

Papers: Qu et al. 2021, RocketQA, https://arxiv.org/abs/2010.08191 (70% of the top MS MARCO candidates are positives;
denoising by a cross-encoder); Moreira et al. 2024, NV-Retriever, https://arxiv.org/abs/2407.15831 (margins relative to
the positive's score: TopK-PercPos 95%).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from unitsphere.mining.candidates import Found, lowest
from unitsphere.similar import Near


class Filter(Protocol):
    """(Q, K) True where a candidate may be taken, out of those that may be until now."""

    def __call__(self, found: Found, keep: np.ndarray) -> np.ndarray: ...


class Margin:
    """Keeps s(q, n) <= s(q, p) - absolute and s(q, n) <= s(q, p) - relative |s(q, p)|, p the query's lowest positive, s
    the source's own score.

    A query without a labelled positive, and a source without scores, loses nothing to a margin.

    Args:
        absolute: In the source's unit: cosine in [-1, 1], BM25 from 0; None leaves it out.
        relative: A share: 0.05 is NV-Retriever's "95% of the positive's score"; None leaves it out.
        highest: Keep s(q, n) <= highest only.
        lowest: Keep s(q, n) >= lowest only: what is far away teaches nothing.
    """

    def __init__(
        self,
        absolute: float | None = None,
        relative: float | None = 0.05,
        highest: float | None = None,
        lowest: float | None = None,
    ):
        self.absolute, self.relative, self.highest, self.lowest = absolute, relative, highest, lowest

    def __call__(self, found: Found, keep: np.ndarray) -> np.ndarray:
        scores, positive = found.scores, found.positive[:, None]
        if self.absolute is not None:
            keep = keep & ~(scores > positive - self.absolute)
        if self.relative is not None:
            keep = keep & ~(scores > positive - self.relative * np.abs(positive))
        if self.highest is not None:
            keep = keep & ~(scores > self.highest)
        return keep if self.lowest is None else keep & ~(scores < self.lowest)


class NearDuplicates:
    """Drops a candidate whose text is nearly a positive's, or the query's. (Equal texts never get here.)

    Args:
        same: Says which texts are.
    """

    def __init__(self, same: Near):
        self.same = same

    def __call__(self, found: Found, keep: np.ndarray) -> np.ndarray:
        keep, shingles = keep.copy(), lru_cache(maxsize=2048)(self.same.shingles)
        for q, rows in enumerate(found.rows):
            right = [found.queries[q], *(found.documents[int(at)] for at in found.labelled[q])]
            for place in np.flatnonzero(keep[q]):
                mine = shingles(found.documents[int(rows[place])])
                keep[q, place] = not any(self.same.alike(mine, shingles(text)) for text in right)
        return keep


class CrossEncoderMargin:
    """Keeps c(q, n) <= c(q, p) - margin, c a cross-encoder's logit, p the query's lowest positive.

    Only the first `candidates` that are left of a query are asked, and only they can be taken.

    Args:
        scorer: Called without arguments; scores a list of (query, document) pairs, (R, 1).
        margin: In logits; 0 trusts the order alone.
        candidates: Pairs asked a query.
    """

    def __init__(self, scorer: Callable[[], Any], margin: float = 0.0, candidates: int = 10):
        self._make, self.margin, self.candidates = scorer, margin, candidates
        self._scorer: Any = None

    def __call__(self, found: Found, keep: np.ndarray) -> np.ndarray:
        self._scorer = self._scorer or self._make()
        asked = keep & (keep.cumsum(axis=1) <= self.candidates)
        queries, places = np.nonzero(asked)
        texts = [
            (found.queries[q], found.documents[int(found.rows[q, k])])
            for q, k in zip(queries.tolist(), places.tolist(), strict=True)
        ]
        scores = np.full(keep.shape, np.nan)
        scores[queries, places] = self._score(texts)
        some = np.flatnonzero(asked.any(axis=1)).tolist()
        right = [(found.queries[q], found.documents[int(row)]) for q in some for row in found.labelled[q]]
        parts = np.split(self._score(right), np.cumsum([len(found.labelled[q]) for q in some])[:-1])
        positive = np.full((len(keep), 1), np.nan)
        positive[some, 0] = [lowest(part) for part in parts]
        found.more["cross_encoder"] = scores
        found.more["cross_encoder_positive"] = np.broadcast_to(positive, scores.shape)
        return asked & ~(scores > positive - self.margin)

    def _score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return self._scorer(pairs)[:, 0] if pairs else np.empty(0)
