"""Token ids of many texts in one flat array, computed once and kept on disk; or of a batch's texts, when it is made."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unitsphere.data.rows import fingerprint
from unitsphere.digest import tokenizer_identity

CHUNK = 16384


@dataclass(frozen=True)
class TokenStore:
    """Text i has the ids `flat[offsets[i] : offsets[i + 1]]`; `cut` of the texts lost their end."""

    flat: np.ndarray
    offsets: np.ndarray
    cut: int

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def tokenize(texts: Sequence[str], encoder: Any, max_length: int, cache: Path) -> TokenStore:
    """Tokenise with `encoder.tokenize`, or map the result of an earlier time into memory.

    The cache's key covers the texts, the tokeniser and the length; the file is written whole or not at all.
    """
    key = fingerprint([tokenizer_identity(encoder.tokenizer), f"{encoder.limit(max_length)} and cut", *texts])[:24]
    file = cache / "tokens" / f"{key}.npy"
    if not file.exists():
        chunks = [encoder.cut(texts[i : i + CHUNK], max_length) for i in range(0, len(texts), CHUNK)]
        sequences = [sequence for chunk, _ in chunks for sequence in chunk]
        offsets = np.cumsum([0, *map(len, sequences)])
        # One array holds everything: number of texts, of texts cut, offsets, ids.
        kind = np.min_scalar_type(-int(offsets[-1]) - 2**16)  # int32, unless offsets are larger
        cut = sum(of_chunk for _, of_chunk in chunks)
        packed = np.concatenate([[len(sequences), cut], offsets, *sequences]).astype(kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        with part.open("wb") as out:
            np.save(out, packed)
        part.replace(file)
    packed = np.load(file, mmap_mode="r")
    count, cut = int(packed[0]), int(packed[1])
    return TokenStore(packed[count + 3 :], np.asarray(packed[2 : count + 3]), cut)


class Ahead:
    """Gives the token ids of texts that are all known, tokenised at the start; other arguments as for `tokenize`.

    Attributes:
        read: Different texts tokenised so far, here all of them.
        cut: How many of them lost their end.
    """

    def __init__(self, texts: Iterable[str], encoder: Any, max_length: int, cache: Path):
        self.number = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self.store = tokenize(list(self.number), encoder, max_length, cache)
        self.read, self.cut = len(self.store), self.store.cut

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.store[self.number[text]] for text in texts]


class AsNeeded:
    """Tokenises texts when it is asked for them, and keeps none: for rows that stay on disk.

    Attributes:
        read: Texts tokenised so far.
        cut: How many of them lost their end.
    """

    def __init__(self, encoder: Any, max_length: int, read: int = 0, cut: int = 0):
        self.encoder, self.max_length = encoder, max_length
        self.read, self.cut = read, cut

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids, cut = self.encoder.cut(texts, self.max_length)
        self.read, self.cut = self.read + len(texts), self.cut + cut
        return ids
