"""Vectors in a file, read in blocks, so that a corpus needs no more memory than a block."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np


class VectorFile:
    """N rows of D float32 numbers, one after another, on disk.

    Args:
        path: Written anew.
        blocks: (n, D) arrays, one after another.
    """

    def __init__(self, path: Path, blocks: Iterable[np.ndarray]):
        self.path, self.shape = path, (0, 0)
        with path.open("wb") as out:
            for block in blocks:
                out.write(np.ascontiguousarray(block, dtype=np.float32).tobytes())
                self.shape = (self.shape[0] + len(block), block.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start, …, stop - 1: (stop - start, D)."""
        width, stop = self.shape[1], min(stop, len(self))
        flat = np.fromfile(self.path, np.float32, (stop - start) * width, offset=start * width * 4)
        return flat.reshape(-1, width)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(R) row numbers -> (R, D)."""
        if not len(rows):
            return np.empty((0, self.shape[1]), np.float32)
        return np.array(np.memmap(self.path, np.float32, "r", shape=self.shape)[rows])


def blocks(vectors: "np.ndarray | VectorFile", size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, (<= size, D)) of all rows, in order."""
    for start in range(0, len(vectors), size):
        if isinstance(vectors, VectorFile):
            yield start, vectors.read(start, start + size)
        else:
            yield start, np.ascontiguousarray(vectors[start : start + size], dtype=np.float32)
