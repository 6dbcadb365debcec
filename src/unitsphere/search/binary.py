"""Neighbours by the signs of the numbers, put in order by the query's own numbers.

Papers: Yamada et al. 2021, Binary Passage Retriever, https://arxiv.org/abs/2106.00882.
Code: https://github.com/facebookresearch/faiss (Hamming distances); sentence-transformers' `semantic_search_faiss`,
whose precision ubinary this is.
"""

from pathlib import Path

import faiss
import numpy as np

from unitsphere.errors import UsageError
from unitsphere.search.codes import Binary as Bits
from unitsphere.search.index import Index
from unitsphere.search.vectors import VectorFile, blocks

BLOCK = 65536


class Binary(Index):
    """D / 8 bytes a document, in memory: the rescore · k documents nearest in Hamming distance, and of these the k with
    the largest q · sign(d) / sqrt(D).

    Args:
        rescore: Candidates for each document that is asked for; 0 leaves them in the order of Hamming distance, and
            their score is 1 - 2 Hamming / D.

    Raises:
        UsageError: It is negative.
    """

    def __init__(self, rescore: int = 4):
        if rescore < 0:
            raise UsageError(f"index.rescore={rescore}: 0, which leaves it out, or more would fit.")
        self.rescore = rescore
        self.name = f"bits, rescore {rescore}"

    def build(self, documents: np.ndarray | VectorFile) -> None:
        self._code = Bits(documents.shape[1])
        self._bits = np.concatenate([self._code.encode(block) for _, block in blocks(documents, BLOCK)])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        count = min(k, len(self._bits))
        candidates = min(count * max(self.rescore, 1), len(self._bits))
        distances, rows = faiss.knn_hamming(self._code.encode(queries), self._bits, candidates)
        if not self.rescore:
            return (1 - 2 * distances / self._code.dim).astype(np.float32), rows.astype(np.int64)
        scores = np.stack([self._code.decode(self._bits[of]) @ q for q, of in zip(queries, rows, strict=True)])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return best[0].astype(np.float32), best[1].astype(np.int64)

    def write(self, folder: Path) -> None:
        np.save(folder / "bits.npy", self._bits)

    def read(self, folder: Path, documents: VectorFile) -> None:
        self._code, self._bits = Bits(documents.shape[1]), np.load(folder / "bits.npy")
