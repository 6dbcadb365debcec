"""One row of each kind.

Paper: Lee et al. 2021, Deduplicating Training Data Makes Language Models Better, https://arxiv.org/abs/2107.06499
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unitsphere.data.rows import COLUMNS, Rows
from unitsphere.similar import Same, normalised


class Duplicates:
    """Keeps the first of the rows whose anchors are the same and whose positives are the same.

    The negatives of the others join the first one's, each once. Rows that differ in label, score, instruction or task
    are no duplicates.

    Args:
        same: Says which texts are the same.
    """

    gives: tuple[str, ...] = ()

    def __init__(self, same: Same):
        self.same = same

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]:
        first = self.same.representatives(dict.fromkeys([*rows.anchor, *(rows.positive or ())]))
        keys: dict[str, Any] = {name: getattr(rows, name) for name in COLUMNS if name != "negative"}
        for column in ("anchor", "positive"):
            keys[column] = keys[column] and [first[text] for text in keys[column]]
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for i, key in enumerate(zip(*(values for values in keys.values() if values is not None), strict=True)):
            kinds.setdefault(key, []).append(i)
        kept = [members[0] for members in kinds.values()]
        left = rows.take(kept)
        if rows.negative is None:
            return left, kept
        merged = [[text for i in members for text in rows.negative[i]] for members in kinds.values()]
        return replace(left, negative=[_each_once(texts) for texts in merged]), kept


def _each_once(texts: Sequence[str]) -> list[str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(normalised(text), text)
    return list(first.values())
