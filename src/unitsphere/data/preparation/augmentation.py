"""Altered copies of texts: as positives of a text that has none, or in place of it.

Papers: Gao et al. 2021, SimCSE, https://arxiv.org/abs/2104.08821 (Table 1: every one of these is worse there than
dropout alone); Wu et al. 2020, CLEAR, https://arxiv.org/abs/2012.15466; Wei & Zou 2019, EDA,
https://arxiv.org/abs/1901.11196; Yan et al. 2021, ConSERT, https://arxiv.org/abs/2105.11741.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError
from unitsphere.formats.words import joined, words


class Augmentation(ABC):
    """Reads one column and writes what it made of it into another, or back.

    A text is altered at a share of its words (see `words.words`: characters in Chinese): of n words, floor(rate n + u)
    with u uniform in [0, 1), so rate n in expectation, and of a short text sometimes none. One word is always left.

    Args:
        rate: Share of the words, in [0, 1].
        count: So many words instead of a share; None is by the share.
        column: What is read: "anchor" or "positive".
        into: "positive" writes a positive, in place of one that is there; "negative" adds a hard negative; None puts
            the altered text where it was read.
        copies: Rows made of each row, each altered anew.

    Raises:
        UsageError: A setting is out of its range, or the rows do not have the column.
    """

    def __init__(
        self,
        rate: float = 0.1,
        count: int | None = None,
        column: Literal["anchor", "positive"] = "anchor",
        into: Literal["positive", "negative"] | None = "positive",
        copies: int = 1,
    ):
        fits = 0 <= rate <= 1 and (count is None or count >= 0) and copies >= 1
        if not fits or column not in ("anchor", "positive") or into not in (None, "positive", "negative"):
            raise UsageError(
                f"{type(self).__name__}: rate={rate} in [0, 1], count={count} of 0 or more or null, column={column} "
                f"of anchor or positive, into={into} of positive, negative or null, copies={copies} of 1 or more?"
            )
        self.rate, self.count, self.column, self.into, self.copies = rate, count, column, into, copies
        self.gives: tuple[str, ...] = () if into is None else (into,)

    @abstractmethod
    def altered(self, parts: list[str], some: int, draw: np.random.Generator) -> Sequence[str]:
        """The words of the new text.

        Args:
            parts: The words of the old one, 2 or more.
            some: How many of them to alter, 1 or more and fewer than there are.
            draw: Of what is random.
        """

    def text(self, text: str, draw: np.random.Generator) -> str:
        """An altered copy of a text, or the text itself where there is nothing to alter."""
        parts = words(text)
        some = int(self.rate * len(parts) + draw.random()) if self.count is None else self.count
        some = min(some, len(parts) - 1)
        if some < 1:
            return text
        new = self.altered(parts, some, draw)
        return joined(new) if list(new) != parts else text

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]:
        read = getattr(rows, self.column)
        if read is None:
            raise UsageError(f"{type(self).__name__}: the data has no {self.column} column to read.")
        origins = [i for i in range(len(rows)) for _ in range(self.copies)]
        made: list[Any] = [self.text(read[i], draw) for i in origins]
        if self.into == "negative":
            before = rows.negative or [()] * len(rows)
            made = [[*before[i], new] for i, new in zip(origins, made, strict=True)]
        columns: dict[str, Any] = {self.into or self.column: made}
        return replace(rows.take(origins), **columns), origins
