"""A network's fingerprint: equal for equal weights, wherever they were read from."""

import hashlib

import torch
from torch import nn


def digest(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a network's weights and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
