"""Exact nearest neighbours by dot product, with Faiss.

Paper: Douze et al. 2024, The Faiss Library, https://arxiv.org/abs/2401.08281
"""

import faiss
import numpy as np


def search(queries: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` documents with the largest dot product for each query.

    Args:
        queries: (Q, D) float32.
        documents: (N, D) float32.
        k: At most N are returned.

    Returns:
        Scores and row numbers, each (Q, min(k, N)), best first.
    """
    index = faiss.IndexFlatIP(documents.shape[1])
    index.add(np.ascontiguousarray(documents, dtype=np.float32))
    scores, rows = index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(documents)))
    return scores, rows
