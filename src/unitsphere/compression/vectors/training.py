"""The vectors that a step learns from: those of training texts."""

import numpy as np

from unitsphere.coded import Coded
from unitsphere.compression.step import Context
from unitsphere.errors import UsageError

ROLES = ("query", "document")


def vectors(model: Coded, context: Context, count: int, least: int = 1) -> np.ndarray:
    """(at most `count`, dim) of different training texts, drawn at random, each in its role; before the code.

    Raises:
        UsageError: There are fewer than `least`.
    """
    texts = list(dict.fromkeys((text, role) for row in context.pairs for text, role in zip(row, ROLES, strict=True)))
    drawn = np.random.default_rng(context.seed).permutation(len(texts))[:count]
    if len(drawn) < least:
        raise UsageError(
            f"compression: {len(drawn)} training texts ({len(texts)} there, texts={count}); {least} or more would fit."
        )
    of_role = {role: [texts[i][0] for i in drawn if texts[i][1] == role] for role in ROLES}
    return np.concatenate([model.floats(of, role, max_length=context.max_length) for role, of in of_role.items()])
