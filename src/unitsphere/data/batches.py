"""Batches of tokenised rows in a shuffled order that is a function of the seed and the epoch alone.

So a run that was cut goes on with exactly the batch it would have had: the position is the whole state.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache as cache_of
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unitsphere.data.rows import Rows
from unitsphere.data.samplers import Sampler
from unitsphere.data.tokens import Ahead, AsNeeded
from unitsphere.digest import hashes
from unitsphere.errors import UsageError
from unitsphere.types import Batch, Text

ROLES = {"anchor": "query", "positive": "document", "negative": "document"}


class Batches:
    """An endless supply of epochs; each `iter` is one epoch, from where the last one was left, or the next one.

    The last rows of an epoch that fill no batch are left out of it: a smaller batch has fewer negatives.

    Args:
        rows: The training rows.
        columns: Those that the loss reads; other texts are not tokenised.
        sampler: Says which rows make a batch.
        encoder: Tokenises.
        prompts: Role -> text put before every text of that role.
        batch_size: Rows a batch, over all ranks; each rank gets its share of every batch.
        max_length: Tokens kept of a text.
        seed: Of the order.
        cache: Where token ids are kept; those of rows on disk are computed batch by batch.

    Raises:
        UsageError: There are fewer rows than a batch needs.
    """

    def __init__(
        self,
        rows: Rows,
        columns: Collection[str],
        sampler: Sampler,
        encoder: Any,
        prompts: Mapping[str, str],
        batch_size: int,
        max_length: int,
        seed: int,
        cache: Path,
    ):
        if len(rows) < batch_size:
            raise UsageError(
                f"{len(rows)} training rows do not fill one batch of {batch_size}; data.batch_size={len(rows)} would."
            )
        self.batch_size, self.seed, self.sampler = batch_size, seed, sampler
        self.rows = self.given = rows  # the order follows the rows as they were given, the texts what they have become
        self.epoch = self.position = 0
        self.rank, self.world = 0, 1
        self.wanted = {"anchor", *columns}
        self.columns = [c for c in ROLES if getattr(rows, c) is not None and c in self.wanted]
        self.encoder, self.prompts, self.max_length = encoder, prompts, encoder.limit(max_length)
        self._prompt_length = cache_of(encoder.prompt_length)
        self.tokens: Ahead | AsNeeded
        if rows.on_disk:
            self.tokens = AsNeeded(encoder, max_length)
        else:
            everything = range(len(rows))
            read = ((c, *self._texts(c, everything)) for c in self.columns)
            texts = (p + t for c, own, some, _ in read for p, t in zip(self._before(c, own), some, strict=True))
            self.tokens = Ahead(texts, encoder, max_length, cache)
        self._order = self._epoch_order(self.epoch)

    def _texts(self, column: str, rows: Sequence[int]) -> tuple[list[str | None], list[str], list[int]]:
        """The row's own instruction, or None, for each text of a column in some rows, the texts, and which of `rows`,
        counted from 0, each is of."""
        values, of = getattr(self.rows, column), list(range(len(rows)))
        texts = [values[row] for row in rows]
        if column == "negative":
            of = [at for at, several in zip(of, texts, strict=True) for _ in several]
            texts = [text for several in texts for text in several]
        given = self.rows.anchor_instruction if column == "anchor" else self.rows.positive_instruction
        own = [None] * len(rows) if given is None else [given[row] for row in rows]
        return [own[at] for at in of], texts, of

    def _before(self, column: str, own: Sequence[str | None]) -> list[str]:
        """What stands before texts of a column: their own instructions, else the prompt of the column's role."""
        prompt = self.prompts.get(ROLES[column], "")
        return [prompt if instruction is None else instruction for instruction in own]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return self.sampler(self.given, self.batch_size, generator)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        if self.position == len(self):  # the last epoch is over, though its iterator may not have been told to stop
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._epoch_order(self.epoch)
        while self.position < len(self):
            rows = self._order[self.position]
            self.position += 1
            yield self._batch(rows[self.rank :: self.world])

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch have been taken."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the batch that `state_dict` named."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._epoch_order(self.epoch)

    def upcoming(self, count: int) -> np.ndarray:
        """The different rows of the next `count` batches, of all ranks, through as many epochs as these are."""
        coming, epoch = [self._order[self.position : self.position + count]], self.epoch
        while (left := count - sum(map(len, coming))) > 0 and len(self):
            epoch += 1
            coming.append(self._epoch_order(epoch)[:left])
        return np.unique(np.concatenate(coming))

    def set_negatives(self, negatives: Mapping[int, Sequence[str]]) -> None:
        """Give rows other negatives from now on: row number -> texts. Others keep what they have.

        Raises:
            UsageError: The loss does not read negatives.
        """
        if "negative" not in self.wanted:
            raise UsageError("this loss reads no negatives, so mining them while it trains is of no use.")
        had: Sequence[Sequence[str]] = self.rows.negative or [[]] * len(self.rows)
        self.rows = replace(self.rows, negative=[negatives.get(i, own) for i, own in enumerate(had)])
        if "negative" not in self.columns:
            self.columns.append("negative")
        read, cut = self.truncated
        self.tokens = AsNeeded(self.encoder, self.max_length, read, cut)

    @property
    def truncated(self) -> tuple[int, int]:
        """How many different texts were tokenised so far (of rows on disk: texts), and how many of them were cut."""
        return self.tokens.read, self.tokens.cut

    def _batch(self, numbers: np.ndarray) -> Batch:
        rows, chosen = self.rows, numbers.tolist()
        read = {column: self._texts(column, chosen) for column in self.columns}
        return Batch(
            tokens={c: self._tokenized(self._before(c, own), texts) for c, (own, texts, _) in read.items()},
            text_ids={column: _numbered(texts) for column, (_, texts, _) in read.items()},
            negative_rows=torch.tensor(read["negative"][2] if "negative" in read else [], dtype=torch.long),
            row_ids=torch.from_numpy(numbers),
            labels=None if rows.label is None else _numbered([rows.label[row] for row in chosen]),
            scores=None if rows.score is None else torch.tensor([rows.score[row] for row in chosen]),
            texts={column: texts for column, (_, texts, _) in read.items()},
            instructions={c: own for c, (own, _, _) in read.items() if any(one is not None for one in own)},
        )

    def _tokenized(self, before: Sequence[str], texts: Sequence[str]) -> list[Text]:
        ids = self.tokens([prompt + text for prompt, text in zip(before, texts, strict=True)])
        lengths = map(self._prompt_length, before)
        return [Text(of_text, min(length, len(of_text))) for of_text, length in zip(ids, lengths, strict=True)]


def _numbered(texts: Sequence[str]) -> Tensor:
    return torch.from_numpy(hashes(texts))
