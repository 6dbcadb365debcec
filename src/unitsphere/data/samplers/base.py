"""What a sampler is, and what several of them share.

Papers: Conneau & Lample 2019, XLM, https://arxiv.org/abs/1901.07291, and Arivazhagan et al. 2019,
https://arxiv.org/abs/1907.05019 (temperature-weighted mixing).
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


def drawn(
    groups: Sequence[np.ndarray], share: np.ndarray, count: int, size: int, draw: np.random.Generator
) -> np.ndarray:
    """(count, size) row numbers: `count` times a group is drawn, and gives its next `size` rows.

    A group gives its rows in random order; when fewer than `size` are left, it is shuffled anew.

    Args:
        groups: The row numbers of each group, `size` or more where its share is not 0.
        share: In proportion to a group's probability.
        count, size: Of what is drawn.
        draw: Source of randomness.
    """
    chosen = draw.choice(len(groups), count, p=share / share.sum())
    out = np.empty((count, size), np.int64)
    for group, members in enumerate(groups):
        at = np.flatnonzero(chosen == group)
        left = -(-len(at) // max(len(members) // size, 1))  # times that it passes all its rows
        passes = [cut(draw.permutation(members), size) for _ in range(left)]
        out[at] = np.concatenate([*passes, np.empty((0, size), np.int64)])[: len(at)]
    return out


def tempered(groups: Sequence[np.ndarray], temperature: float) -> np.ndarray:
    """n_g^(1 / temperature) of each group of n_g rows: 1 in proportion to the rows, large equally often."""
    return np.array([len(members) for members in groups], dtype=float) ** (1 / temperature)


def checked_temperature(temperature: float) -> float:
    """The temperature of a sampler.

    Raises:
        UsageError: It is below 1, which would favour the large groups beyond their rows.
    """
    if temperature < 1:
        raise UsageError(f"sampler.temperature={temperature}: 1 or more would fit.")
    return temperature


def members(values: Sequence[str]) -> dict[str, np.ndarray]:
    """The row numbers of each value, values in order of first appearance."""
    codes, names = pd.factorize(np.array(values, dtype=object))
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def cut(rows: np.ndarray, size: int) -> np.ndarray:
    """(n // size, size): the first rows in groups; the last ones, which fill none, are left out."""
    return rows[: len(rows) // size * size].reshape(-1, size)


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A generator of NumPy's, seeded by the next number of one of torch's."""
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
