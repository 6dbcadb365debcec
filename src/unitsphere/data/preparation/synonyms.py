"""Words replaced by synonyms out of a table of the user's.

Papers: Wei & Zou 2019, EDA, https://arxiv.org/abs/1901.11196; Gao et al. 2021, SimCSE, Table 1 (77.4 on STS-B dev, none
82.5), https://arxiv.org/abs/2104.08821
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from unitsphere.data.preparation.augmentation import Augmentation
from unitsphere.errors import UsageError
from unitsphere.formats.synonyms import read
from unitsphere.formats.words import joined, words

AROUND = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


class Synonyms(Augmentation):
    """`some` words, or runs of words, that are in the table are replaced by one of their synonyms, drawn evenly.

    Case does not count and the punctuation around a word stays; a capital stays a capital. The longest entry that
    stands at a place is taken, so that "of course" and 高兴 are found.

    Args:
        path: A table (see `formats.synonyms`).
        rate, count, column, into, copies: As for every augmentation.

    Raises:
        UsageError: The table is missing, empty or malformed.
    """

    def __init__(
        self,
        path: str | None,
        rate: float = 0.1,
        count: int | None = None,
        column: Literal["anchor", "positive"] = "anchor",
        into: Literal["positive", "negative"] | None = "positive",
        copies: int = 1,
    ):
        super().__init__(rate, count, column, into, copies)
        if path is None:
            raise UsageError("preparation.synonyms.path is not set: a tsv of words and their synonyms")
        self.table = read(path)
        self.longest = max(len(words(entry)) for entry in self.table)

    def altered(self, parts: list[str], some: int, draw: np.random.Generator) -> Sequence[str]:
        known = self._known(parts)
        chosen = draw.permutation(len(known))[:some]
        new = list(parts)
        for start, end in sorted((known[i] for i in chosen), reverse=True):
            found = self._entry(joined(parts[start:end]))
            assert found is not None  # `known` says so
            before, entry, after = found
            synonym = str(draw.choice(self.table[entry.casefold()]))
            synonym = synonym[0].upper() + synonym[1:] if entry[0].isupper() else synonym
            new[start:end] = words(before + synonym + after)
        return new

    def _known(self, parts: Sequence[str]) -> list[tuple[int, int]]:
        """Where entries of the table stand, none over another."""
        found, start = [], 0
        while start < len(parts):
            ends = range(min(start + self.longest, len(parts)), start, -1)
            end = next((end for end in ends if self._entry(joined(parts[start:end]))), None)
            if end is not None:
                found.append((start, end))
            start = end or start + 1
        return found

    def _entry(self, text: str) -> tuple[str, str, str] | None:
        """Punctuation before an entry of the table, the entry, which may have its own ("c++"), punctuation after."""
        return next((found for found in (("", text, ""), _bare(text)) if found[1].casefold() in self.table), None)


def _bare(text: str) -> tuple[str, str, str]:
    """Punctuation before, the words, punctuation after."""
    found = AROUND.fullmatch(text)
    assert found is not None  # it matches any text
    return found[1], found[2], found[3]
