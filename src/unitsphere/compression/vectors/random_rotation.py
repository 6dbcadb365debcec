"""Random directions: the control of those that are learned.

Papers: Johnson & Lindenstrauss 1984; Mezzadri 2007, How to Generate Random Matrices from the Classical Compact Groups,
https://arxiv.org/abs/math-ph/0609050 (the signs of QR).
"""

import numpy as np

from unitsphere.coded import Coded
from unitsphere.compression.step import Context
from unitsphere.compression.vectors.narrowing import Narrowing


class RandomRotation(Narrowing):
    """z -> z Q / |z Q|, the columns of Q (D, dim) orthonormal, drawn uniformly. With dim = D every cosine stays.

    Args:
        dim: Numbers kept.
    """

    name = "random_rotation"

    def directions(self, model: Coded, context: Context) -> tuple[np.ndarray, np.ndarray]:
        q, r = np.linalg.qr(np.random.default_rng(context.seed).normal(size=(model.dim, self.dim)))
        return q * np.sign(np.diag(r)), np.zeros(self.dim)
