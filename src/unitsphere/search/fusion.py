"""Several rankings of the same documents as one.

Papers: Cormack et al. 2009, Reciprocal Rank Fusion, https://doi.org/10.1145/1571941.1572114; Bruch et al. 2023, An
Analysis of Fusion Functions for Hybrid Retrieval, https://arxiv.org/abs/2210.11934 (convex combination).
"""

from collections.abc import Sequence

import numpy as np

from unitsphere.errors import UsageError

Ranking = tuple[np.ndarray, np.ndarray]  # scores (Q, K), best first, and document rows (Q, K), -1 where there is none


def reciprocal_rank(rankings: Sequence[Ranking], k: int, c: float = 60) -> Ranking:
    """score(d) = sum over the rankings that have d of 1 / (c + rank), rank = 1, 2, …

    Args:
        rankings: Of the same queries.
        k: How many are returned.
        c: How little the first places count over the next; 60 in the paper.
    """
    return _fused([(1 / (c + 1 + np.arange(rows.shape[1])) * (rows >= 0), rows) for _, rows in rankings], k)


def weighted(rankings: Sequence[Ranking], weights: Sequence[float], k: int) -> Ranking:
    """score(d) = sum over rankings of weight * (s - min) / (max - min), min and max over a query's own K candidates; a
    document that a ranking does not have gets 0 from it.

    Args:
        rankings: Of the same queries.
        weights: One a ranking; alpha and 1 - alpha for dense and lexical.
        k: How many are returned.

    Raises:
        UsageError: Not as many weights as rankings.
    """
    if len(weights) != len(rankings):
        raise UsageError(f"weights={list(weights)}: {len(rankings)} numbers, one a ranking, would fit.")
    scaled = []
    for (scores, rows), weight in zip(rankings, weights, strict=True):
        there = rows >= 0
        low = np.where(there, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        high = np.where(there, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        span = np.where(high > low, high - low, 1)
        share = np.where(high > low, np.where(there, scores, 0) - low, 1)  # where all are equal, each is the best
        scaled.append((weight * np.where(there, share / span, 0), rows))
    return _fused(scaled, k)


def _fused(rankings: Sequence[Ranking], k: int) -> Ranking:
    """Add up scores by document; the best `k`, equal scores in row order, -inf and -1 where there are fewer."""
    count = len(rankings[0][0])
    scores, rows = np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64)
    for q in range(count):
        seen = np.concatenate([r[q] for _, r in rankings])
        given = np.concatenate([s[q] for s, _ in rankings])
        documents, place = np.unique(seen[seen >= 0], return_inverse=True)
        total = np.bincount(place, weights=given[seen >= 0], minlength=len(documents))
        best = np.lexsort((documents, -total))[:k]
        scores[q, : len(best)], rows[q, : len(best)] = total[best], documents[best]
    return scores, rows
