"""What every pooler shares: positions count from the first real token, so that padding on either side is invisible."""

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """Base of the poolers: `forward(TokenStates) -> (B, dim)`.

    Args:
        dim: The encoder's width.

    Attributes:
        dim: The width of what comes out.
        needs_layers: Whether `forward` reads `TokenStates.layers`.
        train_only: Whether a part of it is left out of evaluation.
        sentence_transformers: The same pooling as that library's `pooling_mode` flags, where it has it.
    """

    needs_layers = False
    train_only = False
    sentence_transformers: tuple[str, ...] = ()

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim


def first(mask: Tensor) -> Tensor:
    """(B, T) mask -> (B) index of each row's first token."""
    return mask.to(torch.int8).argmax(dim=1)


def last(mask: Tensor) -> Tensor:
    """(B, T) mask -> (B) index of each row's last token."""
    return mask.shape[1] - 1 - mask.flip(1).to(torch.int8).argmax(dim=1)


def at(hidden: Tensor, index: Tensor) -> Tensor:
    """(B, T, D), (B) -> (B, D): one token's state from each row."""
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """(B, T, D), (B, T) -> (B, D): the weighted mean, summed in fp32."""
    with torch.autocast(hidden.device.type, enabled=False):
        weights = weights.float()
        total = torch.einsum("btd,bt->bd", hidden.float(), weights)
        return total / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
