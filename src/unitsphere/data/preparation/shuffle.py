"""Words that change places. See `augmentation`."""

from collections.abc import Sequence

import numpy as np

from unitsphere.data.preparation.augmentation import Augmentation


class Shuffle(Augmentation):
    """The words at `some` places, two or more, are put in a random order among these places.

    With `into=negative` it makes hard negatives that have the same words (Yuksekgonul et al. 2023,
    https://arxiv.org/abs/2210.01936).
    """

    def altered(self, parts: list[str], some: int, draw: np.random.Generator) -> Sequence[str]:
        places = draw.choice(len(parts), max(2, some), replace=False)
        new = list(parts)
        for place, other in zip(places, draw.permutation(places), strict=True):
            new[place] = parts[other]
        return new
