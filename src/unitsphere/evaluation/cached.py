"""One round of evaluation: each text is embedded once for all evaluators, within a time each, and every vector is
looked at before it is used."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.types import Embed

SLICE = 256  # texts between two looks at the clock

T = TypeVar("T")


class OutOfTime(Exception):
    """An evaluator's time is over.

    Attributes:
        done: Vectors of the first texts that were asked for, as many as there was time for.
    """

    def __init__(self, done: Sequence[np.ndarray]):
        super().__init__(f"{len(done)} texts were embedded in time")
        self.done = list(done)


class CachedEmbed:
    """An `Embed` that computes each (role, length, prompt, text) once.

    Args:
        embed: The function to remember. It must not change in the cache's lifetime: make a new cache a round.
        seconds: Until `OutOfTime` is raised, counted from `start()`; None is for ever. It runs over by at most the time
            that a slice of 256 texts takes. What is known already is answered at any time.
        clock: In seconds.

    Raises:
        OutOfTime: The time is over, and not all vectors are there.
        UsageError: A vector has a number that is not finite.
    """

    def __init__(self, embed: Embed, seconds: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.embed, self.seconds, self.clock = embed, seconds, clock
        self.known: dict[tuple[str, int | None, str | None], dict[str, np.ndarray]] = {}
        self.start()

    def start(self) -> None:
        """Begin an evaluator's time."""
        self.end = math.inf if self.seconds is None else self.clock() + self.seconds

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        known = self.known.setdefault((role, max_length, prompt), {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        try:
            for some in self.slices(new):
                known.update(zip(some, finite(self.embed(some, role, max_length, prompt), some), strict=True))
        except OutOfTime:
            raise OutOfTime([known[text] for text in itertools.takewhile(known.__contains__, texts)]) from None
        return np.stack([known[text] for text in texts])

    def slices(self, of: Sequence[T]) -> Iterator[Sequence[T]]:
        """Slices of a list, with a look at the clock before each; without a time the whole list, so that encode sorts
        all by length.

        Raises:
            OutOfTime: The time is over; with no vectors.
        """
        size = SLICE if self.seconds is not None else max(1, len(of))
        for at in range(0, len(of), size):
            if self.seconds is not None and self.clock() > self.end:
                raise OutOfTime([])
            yield of[at : at + size]


def finite(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The vectors (R, D) themselves.

    Raises:
        UsageError: One is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UsageError(
            f"the model's vectors are not finite for {len(bad):,} of {len(texts):,} texts, "
            f"e.g. {texts[bad[0]][:80]!r}. "
            "Its weights may have diverged (a lower optim.lr), or the precision is too low for it (trainer.precision)"
        )
    return vectors
