"""The first numbers of each vector: what Matryoshka training is for; of any other model, the control.

Paper: Kusupati et al. 2022, Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147
"""

import numpy as np

from unitsphere.coded import Coded
from unitsphere.compression.step import Context
from unitsphere.compression.vectors.narrowing import Narrowing


class Truncate(Narrowing):
    """z -> z[:dim] / |z[:dim]|.

    Args:
        dim: Numbers kept.
    """

    name = "truncate"

    def directions(self, model: Coded, context: Context) -> tuple[np.ndarray, np.ndarray]:
        return np.eye(model.dim, self.dim), np.zeros(self.dim)
