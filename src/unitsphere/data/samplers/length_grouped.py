"""Rows of similar length together.

Code: `group_by_length` of transformers (`LengthGroupedSampler`), whose megabatches these are.
"""

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.data.samplers.base import cut, numpy_generator
from unitsphere.errors import UsageError


class LengthGrouped:
    """Every row once; each batch holds rows of similar length, and long and short batches come in random order.

    The rows are shuffled and cut into megabatches of `megabatch` batches; each of these is sorted by length and cut
    into batches. A row's length is the characters of all its texts, which stands for their tokens.

    A row now meets negatives of its own length only. That changes what is learnt, not just how fast: length no
    longer tells a positive from its negatives. Padding is saved by `trainer.chunks` as well, which changes nothing.

    Args:
        megabatch: Batches that are sorted together, 1 or more; 1 is no grouping, more are batches more alike.
    """

    def __init__(self, megabatch: int = 50):
        if megabatch < 1:
            raise UsageError(f"sampler.megabatch={megabatch}: 1 or more would fit.")
        self.megabatch = megabatch

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        draw, length = numpy_generator(generator), lengths(rows)
        order = cut(draw.permutation(len(rows)), batch_size).ravel()
        megabatch = np.arange(len(order)) // (self.megabatch * batch_size)
        order = order[np.lexsort((length[order], megabatch))]
        return draw.permutation(cut(order, batch_size))


def lengths(rows: Rows) -> np.ndarray:
    """(N): the characters of each row's texts."""
    count = np.fromiter(map(len, rows.anchor), np.int64, len(rows))
    if rows.positive is not None:
        count += np.fromiter(map(len, rows.positive), np.int64, len(rows))
    if rows.negative is not None:
        count += np.fromiter((sum(map(len, texts)) for texts in rows.negative), np.int64, len(rows))
    return count
