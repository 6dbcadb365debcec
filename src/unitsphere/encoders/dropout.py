"""Dropout whose masks are drawn sixteen bits a number, and drawn again in the backward pass instead of kept.

On a CPU torch draws a mask on one thread, one number after another; a network that computes on several waits for it.
Here four numbers share a random word of 64 bits.

Papers: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html. Code: the generator is NumPy's SFC64.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

VALUES = 2**16  # that a number's bits can have


class Draws:
    """What is kept of one tensor after the other.

    Args:
        seed: Of all draws.
        p: Probability of a number to be dropped, rounded to a multiple of 2^-16.

    Attributes:
        scale: 1 / (1 - p), by which what is kept must be multiplied for its expectation to stay.
    """

    def __init__(self, seed: int, p: float):
        self.seed, self.p = seed, p
        dropped = round(p * VALUES)
        self.least, self.scale = dropped - VALUES // 2, VALUES / (VALUES - dropped)
        self.words = np.random.SFC64(seed)

    def kept(self, like: Tensor) -> Tensor:
        """1 where a number is kept and 0 where it is dropped, in the shape and numbers of a tensor."""
        words = torch.from_numpy(self.words.random_raw(-(-like.numel() // 4)).view(np.int16))
        return torch.ge(words[: like.numel()].view(like.shape), self.least, out=torch.empty_like(like))

    def again(self) -> "Draws":
        """The same from the start."""
        return Draws(self.seed, self.p)


def seed() -> int:
    """Drawn from torch's generator."""
    return int(torch.randint(2**63 - 1, ()))


def dropout(x: Tensor, p: float) -> Tensor:
    """Numbers kept with probability 1 - p and divided by it, the others 0.

    On a CPU p is rounded to a multiple of 2^-16, and the division is by what it then is, so that the expectation is x.

    Args:
        x: Of any shape.
        p: In [0, 1).
    """
    return _Dropout.apply(x, Draws(seed(), p)) if x.device.type == "cpu" else F.dropout(x, p)


class _Dropout(torch.autograd.Function):
    """It keeps a seed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draws: Draws) -> Tensor:
        ctx.draws = draws
        return draws.kept(x).mul_(x).mul_(draws.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.draws.again().kept(gradient).mul_(gradient).mul_(ctx.draws.scale), None


class Dropout(nn.Dropout):
    """`dropout` in training, nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p > 0 else x


def draw_fast(model: nn.Module) -> None:
    """Let every `nn.Dropout` of a model draw its masks so; changed in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
