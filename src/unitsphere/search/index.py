"""What an index of vectors can do."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from unitsphere.search.vectors import VectorFile


class Index(ABC):
    """Finds the documents with the largest dot product.

    Attributes:
        name: What it is and how exact, as a protocol says it.
    """

    name: str

    @abstractmethod
    def build(self, documents: np.ndarray | VectorFile) -> None:
        """Take the documents (N, D), of length one.

        Raises:
            UsageError: These documents cannot be indexed so; what would fit is said.
        """

    @abstractmethod
    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best documents of each query (Q, D).

        Returns:
            Scores (Q, at most k) float32, best first, and rows int64; -inf and -1 where fewer were found.
        """

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Add what was built to a folder."""

    @abstractmethod
    def read(self, folder: Path, documents: VectorFile) -> None:
        """Instead of `build`: what `write` has put into the folder, and the documents it was built from."""
