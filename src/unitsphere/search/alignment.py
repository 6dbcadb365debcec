"""Maps from one model's vectors to another's, learned from documents that both have embedded.

Papers: Schönemann 1966, A Generalized Solution of the Orthogonal Procrustes Problem, https://doi.org/10.1007/BF02289451;
Smith et al. 2017, Offline Bilingual Word Vectors, https://arxiv.org/abs/1702.03859 (between two spaces of words).
"""

import numpy as np
from scipy import linalg

from unitsphere.errors import UsageError
from unitsphere.search.dense import search
from unitsphere.search.linear import LinearMap


def procrustes(old: np.ndarray, new: np.ndarray) -> LinearMap:
    """z -> z W, W = U V' of the singular value decomposition old' new = U S V'.

    Of equal widths W is the rotation or reflection with the least sum of |old W - new|²; into more numbers likewise,
    with W W' = 1, so that old cosines stay. Into fewer, where W' W = 1, it has the largest sum of old W · new.

    Args:
        old: (N, D).
        new: (N, d), of the same documents.
    """
    u, _, v = linalg.svd(old.astype(np.float64).T @ new.astype(np.float64), full_matrices=False)
    return LinearMap("procrustes", (u @ v).astype(np.float32), np.zeros(new.shape[1], np.float32))


def least_squares(old: np.ndarray, new: np.ndarray, ridge: float = 1e-4) -> LinearMap:
    """z -> z W + b with the least mean of |old W + b - new|² + ridge |W|², b not counted.

    Args:
        old: (N, D).
        new: (N, d), of the same documents.
        ridge: What keeps W small where there are few documents; above 0.

    Raises:
        UsageError: `ridge` is 0 or less.
    """
    if ridge <= 0:
        raise UsageError(f"alignment.ridge={ridge}: more than 0 would fit.")
    x, y = old.astype(np.float64), new.astype(np.float64)
    xc, yc = x - x.mean(axis=0), y - y.mean(axis=0)
    w = linalg.solve(xc.T @ xc + ridge * len(x) * np.eye(x.shape[1]), xc.T @ yc, assume_a="pos")
    return LinearMap("least squares", w.astype(np.float32), (y.mean(axis=0) - x.mean(axis=0) @ w).astype(np.float32))


def agreement(mapped: np.ndarray, new: np.ndarray, k: int = 10) -> dict[str, float]:
    """How near mapped vectors come to what the new model makes of the same N > k documents.

    Args:
        mapped: (N, d), of length one.
        new: (N, d), of length one.
        k: At least 1.

    Returns:
        `cosine`, the mean of mapped · new of a document; `neighbours@<k>`, the share of a new vector's k nearest other
        documents that stay when those are searched by their mapped vectors.
    """
    of_new, of_mapped = (
        [[row for row in of if row != own][:k] for own, of in enumerate(search(new, among, k + 1)[1].tolist())]
        for among in (new, mapped)
    )
    shared = [len(set(a) & set(b)) / k for a, b in zip(of_new, of_mapped, strict=True)]
    return {"cosine": float((mapped * new).sum(axis=1).mean()), f"neighbours@{k}": float(np.mean(shared))}
