"""A run of words taken out. See `augmentation`."""

from collections.abc import Sequence

import numpy as np

from unitsphere.data.preparation.augmentation import Augmentation


class SpanDeletion(Augmentation):
    """`some` words in a row go; where the run begins is drawn evenly (Wu et al. 2020 take out several such runs)."""

    def altered(self, parts: list[str], some: int, draw: np.random.Generator) -> Sequence[str]:
        start = int(draw.integers(len(parts) - some + 1))
        return parts[:start] + parts[start + some :]
