"""Several rows of each of several labels.

Paper: Hermans et al. 2017, P x K batches, https://arxiv.org/abs/1703.07737.
"""

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.data.samplers.base import cut, members, numpy_generator
from unitsphere.errors import UsageError


class ClassBalanced:
    """Each batch holds `per_class` rows of each of batch_size / per_class different labels.

    Each row is used once at most. A class is drawn with a probability in proportion to what is left of it, and the
    epoch is over when too few classes are left for a batch; rows of a class that fill no group of `per_class` sit it
    out.

    Args:
        per_class: Rows of a class in a batch, 2 or more.

    Raises:
        UsageError: The rows have no labels, or the classes are too few or too small for one batch.
    """

    def __init__(self, per_class: int = 4):
        if per_class < 2:
            raise UsageError(f"sampler.per_class={per_class}: 2 or more, else no row has a positive.")
        self.per_class = per_class

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        if rows.label is None:
            raise UsageError("sampler=class_balanced needs a label column: data.columns.label=…")
        if batch_size % self.per_class:
            raise UsageError(f"data.batch_size={batch_size} is no multiple of sampler.per_class={self.per_class}.")
        classes, draw = batch_size // self.per_class, numpy_generator(generator)
        groups = [cut(draw.permutation(of_class), self.per_class) for of_class in members(rows.label).values()]
        groups = [of_class for of_class in groups if len(of_class)]
        left = np.array([len(of_class) for of_class in groups])
        if len(groups) < classes:
            raise UsageError(
                f"sampler=class_balanced: {len(groups)} classes have {self.per_class} rows or more, "
                f"a batch of {batch_size} needs {classes}. Lower data.batch_size or raise sampler.per_class"
            )
        batches = []
        while (left > 0).sum() >= classes:
            chosen = draw.choice(len(groups), classes, replace=False, p=left / left.sum())
            left[chosen] -= 1
            batches.append(np.concatenate([groups[c][left[c]] for c in chosen]))
        return np.stack(batches)
