"""Vectors in a file, read in blocks, so that a corpus needs no more memory than a block."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from unitsphere.search.codes import Code, Float32


class VectorFile:
    """N rows of D numbers on disk, one after another, as the bytes of a code; they come out as float32.

    Args:
        path: A file that `written` has made.
        code: The one that it was written with.
    """

    def __init__(self, path: Path, code: Code):
        self.path, self.code = path, code
        self.shape = (path.stat().st_size // code.bytes, code.dim)

    @classmethod
    def written(cls, path: Path, blocks: Iterable[np.ndarray], code: Code | None = None) -> "VectorFile":
        """A new file of (n, D) arrays, at least one, one after another; 4 bytes a number where no code is given."""
        with path.open("wb") as out:
            for block in blocks:
                code = code or Float32(block.shape[1])
                out.write(code.encode(block).tobytes())
        assert code is not None
        return cls(path, code)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start, …, stop - 1: (stop - start, D)."""
        width, stop = self.code.bytes, min(stop, len(self))
        flat = np.fromfile(self.path, np.uint8, (stop - start) * width, offset=start * width)
        return self.code.decode(flat.reshape(-1, width))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(R) row numbers -> (R, D)."""
        if not len(rows):
            return np.empty((0, self.shape[1]), np.float32)
        stored = np.memmap(self.path, np.uint8, "r", shape=(len(self), self.code.bytes))
        return self.code.decode(np.array(stored[rows]))


def blocks(vectors: "np.ndarray | VectorFile", size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first row, (<= size, D)) of all rows, in order."""
    for start in range(0, len(vectors), size):
        if isinstance(vectors, VectorFile):
            yield start, vectors.read(start, start + size)
        else:
            yield start, np.ascontiguousarray(vectors[start : start + size], dtype=np.float32)
