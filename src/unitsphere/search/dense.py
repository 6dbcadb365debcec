"""Nearest neighbours by dot product, with Faiss: exact, or approximate where a corpus has millions of documents.

Papers: Douze et al. 2024, The Faiss Library, https://arxiv.org/abs/2401.08281; Jégou et al. 2011, inverted lists,
https://doi.org/10.1109/TPAMI.2010.57; Malkov & Yashunin 2018, HNSW, https://arxiv.org/abs/1603.09320
"""

import warnings
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from unitsphere.errors import UsageError
from unitsphere.search.index import Index
from unitsphere.search.vectors import VectorFile, blocks

BLOCK = 65536
MOST_ON_GPU = 2048  # neighbours that Faiss finds there
CUSTOMARY = 39  # vectors for a centroid, as Faiss has it


def search(queries: np.ndarray, documents: np.ndarray | VectorFile, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` documents with the largest dot product for each query, exactly, a block of documents at a time; on a GPU
    where Faiss has one (the extra `gpu`).

    Args:
        queries: (Q, D) float32.
        documents: (N, D) float32.
        k: At most N are returned.

    Returns:
        Scores float32 and row numbers int64, each (Q, min(k, N)), best first.
    """
    k = min(k, len(documents))
    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    on_gpu = faiss.get_num_gpus() > 0 and k <= MOST_ON_GPU
    nearest = partial(faiss.knn_gpu, faiss.StandardGpuResources()) if on_gpu else faiss.knn
    for start, block in blocks(documents, BLOCK):
        scores, rows = nearest(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(np.ascontiguousarray(scores), np.ascontiguousarray(rows + start))
    best.finalize()
    return best.D, best.I


class Exact(Index):
    """Every document is compared: no error, time in proportion to Q N, memory of a block."""

    name = "exact"

    def build(self, documents: np.ndarray | VectorFile) -> None:
        self._documents = documents

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`."""
        return search(queries, self._documents, k)

    def write(self, folder: Path) -> None:
        """Nothing: the documents are all it has."""

    def read(self, folder: Path, documents: VectorFile) -> None:
        self._documents = documents


class Approximate(Index):
    """An index of Faiss, in memory. What it misses, nobody sees.

    Args:
        factory: As Faiss writes it, `{lists}` in it standing for 4 sqrt(N): "IVF{lists},Flat", "HNSW32,Flat", with
            "SQ8" (D bytes a document) or "PQ48np" (48) in place of "Flat" (4 D).
        nprobe: Inverted lists read a query; more of them miss less.
        ef_search: Candidates that HNSW keeps while it walks; likewise.
        train_rows: Documents (the first ones) from which lists, ranges and centroids are learned; at least 39 a list.

    Raises:
        UsageError: One of these is below 1.
    """

    def __init__(self, factory: str, nprobe: int = 32, ef_search: int = 128, train_rows: int = 100_000):
        for name, value in (("nprobe", nprobe), ("ef_search", ef_search), ("train_rows", train_rows)):
            if value < 1:
                raise UsageError(f"index.{name}={value}: 1 or more would fit.")
        self.factory, self.nprobe, self.ef_search, self.train_rows = factory, nprobe, ef_search, train_rows
        self.name = (
            factory + f", nprobe {nprobe}" * ("IVF" in factory) + f", efSearch {ef_search}" * ("HNSW" in factory)
        )

    def build(self, documents: np.ndarray | VectorFile) -> None:
        lists = max(1, min(int(4 * len(documents) ** 0.5), len(documents) // 40))
        name = self.factory.format(lists=lists)
        self._call(lists)
        try:
            self._index = faiss.index_factory(documents.shape[1], name, faiss.METRIC_INNER_PRODUCT)
            _, first = next(blocks(documents, max(self.train_rows, CUSTOMARY * lists * ("IVF" in name))))
            _tell_of_few(self._index, name, len(first))
            self._index.train(first)
        except RuntimeError as error:
            raise UsageError(
                f"index.factory={self.factory}: Faiss makes no index {name!r} of {len(documents)} vectors of "
                f"{documents.shape[1]} numbers ({str(error).rpartition('Error: ')[2].strip()})."
            ) from error
        parameters = faiss.ParameterSpace()
        if "IVF" in name:
            parameters.set_index_parameter(self._index, "nprobe", min(self.nprobe, lists))
        if "HNSW" in name:
            parameters.set_index_parameter(self._index, "efSearch", self.ef_search)
        for _, block in blocks(documents, BLOCK):
            self._index.add(block)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return np.where(rows < 0, -np.inf, scores).astype(np.float32), rows

    def write(self, folder: Path) -> None:
        faiss.write_index(self._index, str(folder / "index.faiss"))

    def read(self, folder: Path, documents: VectorFile) -> None:
        self._index = faiss.read_index(str(folder / "index.faiss"))
        if "{lists}" in self.factory:
            self._call(faiss.extract_index_ivf(self._index).nlist)

    def _call(self, lists: int) -> None:
        self.name = self.name.replace("{lists}", str(lists))


def _tell_of_few(index: faiss.Index, name: str, rows: int) -> None:
    """Once, if product quantisation learns from few documents; Faiss would say it for every part of a vector."""
    if not hasattr(index, "pq"):
        return
    index.pq.cp.min_points_per_centroid = 1
    count = index.pq.ksub
    if rows < CUSTOMARY * count:
        warnings.warn(
            f"{name}: {count} centroids a part learn from {rows:,} documents; {CUSTOMARY * count:,} are customary",
            stacklevel=4,
        )


def unit(x: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norms; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
