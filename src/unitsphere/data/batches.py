"""Batches of tokenised rows in a shuffled order that is a function of the seed and the epoch alone.

So a run that was cut goes on with exactly the batch it would have had: the position is the whole state.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from unitsphere.data.rows import Rows, numbered
from unitsphere.data.samplers import Sampler
from unitsphere.data.tokens import TokenStore, tokenize
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
        cache: Where token ids are kept.

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
        self.batch_size, self.seed, self.rows, self.sampler = batch_size, seed, rows, sampler
        self.epoch = self.position = 0
        self.rank, self.world = 0, 1
        negatives = rows.negative if rows.negative is not None and "negative" in columns else [[]] * len(rows)
        self._negative_starts = np.cumsum([0, *map(len, negatives)])
        self._texts: dict[str, Sequence[str]] = {"anchor": rows.anchor}
        if rows.positive is not None and "positive" in columns:
            self._texts["positive"] = rows.positive
        if rows.negative is not None and "negative" in columns:
            self._texts["negative"] = [text for several in negatives for text in several]
        self._text_ids = {column: rows.text_ids[column] for column in self._texts}
        asked = {column: self._prompts(column, prompts) for column in self._texts}
        self._prompt_lengths = {
            prompt: encoder.prompt_length(prompt)
            for prompt in {prompt for column in asked.values() for prompt in column}
        }
        self._prompted_with = asked
        prompted = {c: [p + t for p, t in zip(asked[c], texts, strict=True)] for c, texts in self._texts.items()}
        self._token_ids = numbered(prompted)
        unique = list(dict.fromkeys(text for texts in prompted.values() for text in texts))
        self._tokens: TokenStore = tokenize(unique, encoder, max_length, cache)
        self._labels = None if rows.label is None else torch.from_numpy(pd.factorize(np.array(rows.label, object))[0])
        self._scores = None if rows.score is None else torch.tensor(rows.score)
        self._order = self._epoch_order()

    def _prompts(self, column: str, prompts: Mapping[str, str]) -> Sequence[str]:
        """What stands before each text of a column: the row's instruction, else the prompt of the column's role."""
        rows = self.rows
        given = rows.anchor_instruction if column == "anchor" else rows.positive_instruction
        prompt = prompts.get(ROLES[column], "")
        own = [prompt if text is None else text for text in given or [None] * len(rows)]
        if column != "negative":
            return own
        return np.repeat(np.array(own, object), np.diff(self._negative_starts)).tolist()

    def _epoch_order(self) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return self.sampler(self.rows, self.batch_size, generator)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        if self.position == len(self):  # the last epoch is over, though its iterator may not have been told to stop
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._epoch_order()
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
        self._order = self._epoch_order()

    def _batch(self, rows: np.ndarray) -> Batch:
        starts, ends = self._negative_starts[rows], self._negative_starts[rows + 1]
        negatives = np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)]).astype(np.int64)
        at = {"anchor": rows, "positive": rows, "negative": negatives}
        return Batch(
            tokens={c: [self._text(c, int(i)) for i in at[c]] for c in self._texts},
            text_ids={c: torch.from_numpy(ids[at[c]]) for c, ids in self._text_ids.items()},
            negative_rows=torch.from_numpy(np.repeat(np.arange(len(rows)), ends - starts)),
            row_ids=torch.from_numpy(rows),
            labels=None if self._labels is None else self._labels[rows],
            scores=None if self._scores is None else self._scores[rows],
            texts={c: [texts[i] for i in at[c]] for c, texts in self._texts.items()},
        )

    def _text(self, column: str, row: int) -> Text:
        ids = self._tokens[self._token_ids[column][row]]
        return Text(ids, min(self._prompt_lengths[self._prompted_with[column][row]], len(ids)))
