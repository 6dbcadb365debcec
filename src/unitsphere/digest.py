"""Fingerprints of networks, tokenizers and texts: equal for equal ones, wherever they were read from."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn


def digest(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a network's weights and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """All that decides the ids of a transformers tokenizer, one written in Python too, but for what its last call left
    behind."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return json.dumps(json.loads(backend.to_str()) | {"truncation": None, "padding": None})
    where = {"name_or_path", *tokenizer.vocab_files_names}
    settings = sorted((name, value) for name, value in tokenizer.init_kwargs.items() if name not in where)
    return repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), settings))


def hashes(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text's hash, as int64, so that equal texts are equal in every batch, rank and run.

    Among 5 million texts two different ones are equal with a probability of 1e-6.
    """
    found = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.fromiter(found, dtype="S8").view(np.int64)
