"""Remember vectors within one round of evaluation, so that evaluators that read the same texts share the work."""

from collections.abc import Sequence

import numpy as np

from unitsphere.types import Embed


class CachedEmbed:
    """An `Embed` that computes each (role, length, prompt, text) once.

    Args:
        embed: The function to remember. It must not change in the cache's lifetime: make a new cache a round.
    """

    def __init__(self, embed: Embed):
        self.embed = embed
        self.known: dict[tuple[str, int | None, str | None], dict[str, np.ndarray]] = {}

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        known = self.known.setdefault((role, max_length, prompt), {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, self.embed(new, role, max_length, prompt), strict=True))
        return np.stack([known[text] for text in texts])
