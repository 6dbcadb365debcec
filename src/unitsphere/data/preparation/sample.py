"""A part of the rows, the same one in every run: for learning curves, and for trials that should be quick."""

import hashlib
from collections.abc import Sequence

import numpy as np

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError


class Sample:
    """Keeps the rows whose anchor has the smallest SHA-256, in their order; equal anchors are kept or left together.

    So a smaller sample is a part of a larger one, and no seed has a say.

    Args:
        rows: How many at most.

    Raises:
        UsageError: `rows` is below 1.
    """

    gives: tuple[str, ...] = ()

    def __init__(self, rows: int):
        if rows < 1:
            raise UsageError(f"preparation.sample.rows={rows}: 1 or more would fit.")
        self.rows = rows

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]:
        digests = [hashlib.sha256(anchor.encode("utf-8", "surrogatepass")).digest() for anchor in rows.anchor]
        order = sorted(range(len(rows)), key=lambda i: digests[i])
        end = min(self.rows, len(order))
        while 0 < end < len(order) and digests[order[end - 1]] == digests[order[end]]:
            end -= 1
        kept = sorted(order[:end])
        return rows.take(kept), kept
