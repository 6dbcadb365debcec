"""Which rows make a batch. A sampler's order is a function of the rows and a generator alone, so that a run can be
resumed.

Papers: Hermans et al. 2017, P x K batches, https://arxiv.org/abs/1703.07737; Su et al. 2023, INSTRUCTOR, batches of
one task, https://arxiv.org/abs/2212.09741; Conneau & Lample 2019, https://arxiv.org/abs/1901.07291
(temperature-weighted mixing).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
import torch

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError


class Sampler(Protocol):
    """(batches, batch_size) row numbers: one epoch."""

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray: ...


class Shuffled:
    """Every row once, in random order; the last rows, which fill no batch, are left out: fewer rows are fewer
    negatives."""

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        order = torch.randperm(len(rows), generator=generator).numpy()
        return _cut(order, batch_size)


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
        classes, draw = batch_size // self.per_class, _numpy(generator)
        groups = [_cut(draw.permutation(members), self.per_class) for members in _members(rows.label)]
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


class TaskHomogeneous:
    """Each batch holds rows of one task, so that a task's negatives are its own.

    Tasks are drawn with probability n_t^(1 / temperature) / sum: 1 in proportion to their rows, large equally often. An
    epoch has as many batches as the rows would fill; a task that runs out is shuffled anew.

    Args:
        temperature: 1 or more.

    Raises:
        UsageError: The rows have no tasks, or a task does not fill one batch.
    """

    def __init__(self, temperature: float = 1.0):
        if temperature < 1:
            raise UsageError(f"sampler.temperature={temperature}: 1 or more would fit.")
        self.temperature = temperature

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        if rows.task is None:
            raise UsageError("sampler=task_homogeneous needs data of several tasks: data=mixture")
        draw, names = _numpy(generator), list(dict.fromkeys(rows.task))
        members = _members(rows.task)
        small = [name for name, of_task in zip(names, members, strict=True) if len(of_task) < batch_size]
        if small:
            raise UsageError(f"task {small[0]!r} does not fill one batch of {batch_size}; lower data.batch_size.")
        share = np.array([len(of_task) for of_task in members], dtype=float) ** (1 / self.temperature)
        supply: list[list[np.ndarray]] = [[] for _ in members]
        batches = []
        for task in draw.choice(len(members), len(rows) // batch_size, p=share / share.sum()):
            if not supply[task]:
                supply[task] = list(_cut(draw.permutation(members[task]), batch_size))
            batches.append(supply[task].pop())
        return np.stack(batches)


def _members(values: Sequence[str]) -> list[np.ndarray]:
    """The row numbers of each value, values in order of first appearance."""
    codes = pd.factorize(np.array(values, dtype=object))[0]
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _cut(rows: np.ndarray, size: int) -> np.ndarray:
    return rows[: len(rows) // size * size].reshape(-1, size)


def _numpy(generator: torch.Generator) -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
