"""Rows in random order."""

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.data.samplers.base import cut


class Shuffled:
    """Every row once, in random order; the last rows, which fill no batch, are left out: fewer rows are fewer
    negatives."""

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        return cut(torch.randperm(len(rows), generator=generator).numpy(), batch_size)
