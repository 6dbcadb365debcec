"""Token ids of many texts in one flat array, computed once and kept on disk."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unitsphere.data.rows import fingerprint

CHUNK = 16384


@dataclass(frozen=True)
class TokenStore:
    """Text i has the ids `flat[offsets[i] : offsets[i + 1]]`."""

    flat: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def tokenize(texts: Sequence[str], encoder: Any, max_length: int, cache: Path) -> TokenStore:
    """Tokenise with `encoder.tokenize`, or map the result of an earlier time into memory.

    The cache's key covers the texts, the tokeniser and the length; the file is written whole or not at all.
    """
    max_length = min(max_length, encoder.max_length)
    key = fingerprint([_identity(encoder.tokenizer), str(max_length), *texts])[:24]
    file = cache / "tokens" / f"{key}.npy"
    if not file.exists():
        chunks = [encoder.tokenize(texts[i : i + CHUNK], max_length) for i in range(0, len(texts), CHUNK)]
        sequences = [sequence for chunk in chunks for sequence in chunk]
        offsets = np.cumsum([0, *map(len, sequences)])
        # One array holds everything: number of texts, offsets, ids.
        packed = np.concatenate([[len(sequences)], offsets, *sequences]).astype(np.int32)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        with part.open("wb") as out:
            np.save(out, packed)
        part.replace(file)
    packed = np.load(file, mmap_mode="r")
    count = int(packed[0])
    return TokenStore(packed[count + 2 :], np.asarray(packed[1 : count + 2]))


def _identity(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    return type(tokenizer).__name__ + json.dumps(tokenizer.get_vocab(), sort_keys=True)
