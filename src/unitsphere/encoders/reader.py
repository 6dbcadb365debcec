"""Texts to padded tokens: the half of an encoder that needs no weights.

Code: https://github.com/huggingface/transformers (tokenizers).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from unitsphere.encoders.cpu import AMX
from unitsphere.errors import UsageError
from unitsphere.types import Text, Tokens


class Reader:
    """A tokenizer and the longest input.

    Args:
        tokenizer: A transformers tokenizer; where it has no padding token, its end-of-text token pads.
        max_length: The longest input in tokens; longer texts are cut.
    """

    def __init__(self, tokenizer: Any, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.in_windows = False  # an embedder reads texts window by window: max_length then bounds a window

    def limit(self, max_length: int | None = None) -> int | None:
        """Tokens kept of a text where `max_length` are asked for; None is all.

        Raises:
            UsageError: There is no room for a token beside the special ones.
        """
        if max_length is not None:
            special = self.tokenizer.num_special_tokens_to_add()
            if not isinstance(max_length, int) or max_length <= special:
                raise UsageError(
                    f"max_length={max_length}: a whole number over {special}, the special tokens of a text, would fit."
                )
        limits = [max_length, None if self.in_windows else self.max_length]
        return min((limit for limit in limits if limit), default=None)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
        """One array of token ids a text, special tokens included, cut to `limit(max_length)`."""
        return self.cut(texts, max_length)[0]

    def cut(self, texts: Sequence[str], max_length: int | None = None) -> tuple[list[np.ndarray], int]:
        """As `tokenize`, and how many of the texts lost their end."""
        if not texts:  # which a tokenizer would not take
            return [], 0
        limit = self.limit(max_length)
        options = {} if limit is None else {"truncation": True, "max_length": limit}
        tokens = self.tokenizer(list(texts), return_attention_mask=False, verbose=False, **options)
        ids = tokens["input_ids"]
        full = [i for i, of_text in enumerate(ids) if len(of_text) == limit]
        if tokens.encodings is not None:
            longer = [i for i in full if tokens.encodings[i].overflowing]
        else:  # a tokenizer in Python
            longer = [i for i in full if len(self.tokenizer(texts[i], verbose=False)["input_ids"]) > len(ids[i])]
        return [np.asarray(i or [self.pad_id], dtype=np.int32) for i in ids], len(longer)

    def frame(self) -> tuple[int, int]:
        """The numbers of special tokens before and after every text."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        ids = self.tokenizer("a")["input_ids"]
        before = next(i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
        return before, len(ids) - before - len(bare)

    def prompt_length(self, prompt: str) -> int:
        """The number of leading tokens, special ones included, that a prompt takes; counted as sentence-transformers
        does, which tokenises the prompt alone."""
        if not prompt:
            return 0
        ids = self.tokenizer(prompt, return_attention_mask=False)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def pad(self, texts: Sequence[Text]) -> Tokens:
        """Right-pad to the longest of the texts. Right, because a causal model then sees what it saw alone."""
        lengths = torch.tensor([len(text.ids) for text in texts])
        width = int(lengths.max())
        if self.in_windows and width > self.max_length:
            raise UsageError(
                f"a text of {width} tokens, and the encoder reads {self.max_length}: a loss that reads tokens does not "
                f"go with window=…, unless data.max_length={self.max_length} or less"
            )
        ids = np.full((len(texts), width), self.pad_id, dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text.ids)] = text.ids
        mask = torch.arange(width) < lengths[:, None]  # (1, T) < (B, 1)
        return Tokens(torch.from_numpy(ids), mask.long(), torch.tensor([text.prompt for text in texts]))


def longest_first(lengths: Sequence[int], tokens: int) -> Iterator[np.ndarray]:
    """Sequences in passes, each of as many as have at most so many tokens when they are padded to its longest, and of
    at least one: their numbers."""
    order, start = np.argsort(-np.asarray(lengths), kind="stable"), 0
    while start < len(order):
        some = order[start : start + max(1, tokens // lengths[order[start]])]
        yield some
        start += len(some)


def pass_tokens(device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Padded tokens of a forward pass of an encoder with such weights: on a CPU as many as lie in its caches between
    two layers, and in bfloat16 by AMX, whose products want more rows, twice as many."""
    if device.type != "cpu":
        return 16384
    return 2048 if dtype == torch.bfloat16 and AMX else 1024
