"""Texts that are embedded under instructions of their own, as training reads them.

Paper: Su et al. 2023, INSTRUCTOR, https://arxiv.org/abs/2212.09741
"""

from collections.abc import Mapping, Sequence

import numpy as np

from unitsphere.types import Embed


class Instructed:
    """An `Embed` that puts before a text its own instruction, where it has one, instead of the role's prompt.

    Args:
        embed: The model's.
        instructions: (role, text) -> instruction.
    """

    def __init__(self, embed: Embed, instructions: Mapping[tuple[str, str], str]):
        self.embed, self.instructions = embed, instructions

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        own = [self.instructions.get((role, text), prompt) for text in texts]
        found: dict[int, np.ndarray] = {}
        for before in dict.fromkeys(own):
            at = [i for i, of_text in enumerate(own) if of_text == before]
            found |= zip(at, self.embed([texts[i] for i in at], role, max_length, before), strict=True)
        return np.stack([found[i] for i in range(len(texts))])
