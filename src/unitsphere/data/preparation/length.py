"""Leave out texts that are too short to say anything or too long to be one text."""

from unitsphere.data.preparation.step import TextStep
from unitsphere.errors import UsageError
from unitsphere.formats.words import words


class Length(TextStep):
    """Drops texts outside of bounds, both inclusive; None is no bound.

    Args:
        min_characters, max_characters: Code points.
        min_words, max_words: Words as in `words.words`, which in Chinese are characters.

    Raises:
        UsageError: No bound is given, or a lower one is above its upper one.
    """

    def __init__(
        self,
        min_characters: int | None = None,
        max_characters: int | None = None,
        min_words: int | None = None,
        max_words: int | None = None,
    ):
        bounds = {"characters": (min_characters, max_characters), "words": (min_words, max_words)}
        if all(bound is None for pair in bounds.values() for bound in pair):
            raise UsageError("preparation.length has no bound: give one, e.g. preparation.length.min_words=3")
        for of, (low, high) in bounds.items():
            if low is not None and high is not None and low > high:
                raise UsageError(f"preparation.length: min_{of}={low} is above max_{of}={high}.")
        self.characters, self.words = bounds["characters"], bounds["words"]

    def text(self, text: str) -> str | None:
        fits = _within(len(text), *self.characters)
        if fits and self.words != (None, None):
            fits = _within(len(words(text)), *self.words)
        return text if fits else None


def _within(count: int, low: int | None, high: int | None) -> bool:
    return (low is None or count >= low) and (high is None or count <= high)
