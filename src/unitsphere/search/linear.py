"""A linear map of vectors: into fewer numbers, or out of one model's space into another's."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LinearMap:
    """z -> (z W + b) / |z W + b|.

    Args:
        name: What it is, with its width, as a protocol says it.
        matrix: W (D, d) float32.
        shift: b (d) float32.
    """

    name: str
    matrix: np.ndarray
    shift: np.ndarray

    @property
    def dim(self) -> int:
        """d."""
        return self.matrix.shape[1]

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, d) float32, of length one; what falls on zero stays zero."""
        out = z @ self.matrix + self.shift
        norm = np.linalg.norm(out, axis=1, keepdims=True)
        return (out / np.maximum(norm, 1e-12)).astype(np.float32)
