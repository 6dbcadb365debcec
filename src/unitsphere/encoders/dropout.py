"""Dropout whose masks are drawn sixteen bits a number, where torch draws them one number at a time.

On a CPU torch draws a mask on one thread, one number after another; a network that computes on several waits for it.
Here four numbers share a random word of 64 bits.

Paper: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
"""

from torch import Tensor, empty, int16, int64, nn
from torch.nn import functional as F

VALUES = 2**16  # that a number's bits can have


def dropout(x: Tensor, p: float) -> Tensor:
    """Numbers kept with probability 1 - p and divided by it, the others 0.

    On a CPU p is rounded to a multiple of 2^-16, and the division is by what it then is, so that the expectation is x.

    Args:
        x: Of any shape.
        p: In [0, 1).
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped = round(p * VALUES)
    words = empty(-(-x.numel() // 4), dtype=int64).random_(-(2**63), None)
    kept = words.view(int16)[: x.numel()].view(x.shape) >= dropped - VALUES // 2
    return x * kept * (VALUES / (VALUES - dropped))


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
