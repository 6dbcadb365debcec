"""The first documents of a ranking, put in the order of a slower and better judge.

Paper: Nogueira & Cho 2019, Passage Re-ranking with BERT, https://arxiv.org/abs/1901.04085
"""

from collections.abc import Callable, Sequence

import numpy as np

from unitsphere.search.fusion import Ranking


def rerank(
    queries: Sequence[str],
    documents: Sequence[str],
    ranking: Ranking,
    score: Callable[[Sequence[tuple[str, str]]], np.ndarray],
    depth: int,
) -> Ranking:
    """The first `depth` documents of each query by their score, equal ones as they stood; the others follow as before.

    Args:
        queries: Q texts.
        documents: N texts.
        ranking: Scores (Q, K), best first, and rows (Q, K), -1 where there is none.
        score: R pairs (query, document) -> (R) or (R, 1); called once.
        depth: At least 1.

    Returns:
        Scores (Q, K) float32 and rows (Q, K). Behind the first `depth`, a score is one below the one before.
    """
    rows = ranking[1]
    first, rest = rows[:, :depth], rows[:, depth:]
    q, place = np.nonzero(first >= 0)
    scores = np.full(first.shape, -np.inf, np.float32)
    pairs = [(queries[i], documents[row]) for i, row in zip(q.tolist(), first[q, place].tolist(), strict=True)]
    scores[q, place] = score(pairs).reshape(-1)
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, first = np.take_along_axis(scores, order, axis=1), np.take_along_axis(first, order, axis=1)
    below = scores[:, -1:] - np.arange(1, rest.shape[1] + 1)  # (Q, 1) - (K - depth)
    tail = np.where(rest >= 0, below, -np.inf)
    return np.concatenate([scores, tail], axis=1).astype(np.float32), np.concatenate([first, rest], axis=1)
