"""What the steps share that keep fewer numbers of a vector."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from unitsphere.coded import Coded
from unitsphere.compression.step import Context, Step
from unitsphere.errors import UsageError
from unitsphere.model import Model
from unitsphere.search.linear import LinearMap


class Narrowing(Step):
    """z -> z W + b, brought to length one.

    Args:
        dim: Numbers kept.
    """

    stage = "vector"
    name: ClassVar[str]

    def __init__(self, dim: int = 128):
        self.dim = dim

    def apply(self, model: Model, context: Context) -> Model:
        coded = Coded.of(model)
        self.width(coded.dim)
        matrix, shift = self.directions(coded, context)
        return coded.mapped(LinearMap(f"{self.name} {self.dim}", matrix.astype(np.float32), shift.astype(np.float32)))

    def width(self, dim: int) -> int:
        if not 1 <= self.dim <= dim:
            raise UsageError(
                f"compression.{self.name}.dim={self.dim}: the vectors have {dim} numbers, so 1 to {dim} would fit."
            )
        return self.dim

    @abstractmethod
    def directions(self, model: Coded, context: Context) -> tuple[np.ndarray, np.ndarray]:
        """W (model.dim, dim) and b (dim)."""
