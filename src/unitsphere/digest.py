"""Fingerprints of networks and tokenizers: equal for equal ones, wherever they were read from."""

import hashlib
import json
from typing import Any

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
