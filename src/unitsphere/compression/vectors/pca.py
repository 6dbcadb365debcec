"""The directions in which training texts differ most.

Paper: Jolliffe 2002, Principal Component Analysis, https://doi.org/10.1007/b98835.
Code: https://github.com/scikit-learn/scikit-learn
"""

import numpy as np
from sklearn import decomposition

from unitsphere.coded import Coded
from unitsphere.compression.step import Context
from unitsphere.compression.vectors import training
from unitsphere.compression.vectors.narrowing import Narrowing


class PCA(Narrowing):
    """z -> (z - mean) W / |(z - mean) W|, W (D, dim) the first eigenvectors of the covariance of training vectors.

    Args:
        dim: Numbers kept.
        texts: Training texts that it is learned from.
    """

    name = "pca"

    def __init__(self, dim: int = 128, texts: int = 20_000):
        super().__init__(dim)
        self.texts = texts

    def directions(self, model: Coded, context: Context) -> tuple[np.ndarray, np.ndarray]:
        z = training.vectors(model, context, self.texts, least=self.dim)
        found = decomposition.PCA(self.dim, svd_solver="covariance_eigh").fit(z.astype(np.float64))
        matrix = found.components_.T
        return matrix, -found.mean_ @ matrix
