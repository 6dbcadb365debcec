"""A batch's vectors in memory that does not grow with the batch: the forward pass keeps them and nothing else, the loss
sees all of them, and the backward pass goes through one pass of texts at a time, computed again under the random state
that it had.

Papers: Gao et al. 2021, gradient cache, https://arxiv.org/abs/2101.06983; Chen et al. 2016, recomputation,
https://arxiv.org/abs/1604.06174. To autograd all passes together are one operation on the trained parameters, so it
holds for every loss, with dropout, mixed precision and several ranks, each of which sees one gradient a step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from unitsphere.encoders.reader import longest_first
from unitsphere.heap import give_back
from unitsphere.training.chunks import LengthSorted
from unitsphere.types import Text, Tokens


class GradientCache(LengthSorted):
    """Runs a function over texts in length-sorted passes, each computed again in the backward pass (`types.Passes`).

    Args:
        pad: Texts to padded `Tokens`.
        tokens: Padded tokens a pass.
        device: Where the model is.
        trained: The tensors that get a gradient, besides rows that want one; what else a function reads is constant.
    """

    def __init__(
        self, pad: Callable[[Sequence[Text]], Tokens], tokens: int, device: torch.device, trained: Sequence[Tensor]
    ):
        super().__init__(pad, 1, device)
        self.tokens, self.trained = tokens, trained

    def divide(self, lengths: Sequence[int]) -> list[np.ndarray]:
        return list(longest_first(lengths, self.tokens))

    def compute(self, parts: Sequence[Callable[..., Tensor]], rows: Sequence[Tensor]) -> Tensor:
        return _Recomputed.apply(self.device, parts, len(rows), *rows, *self.trained)

    def at_once(self) -> "GradientCache":
        return self


class _Recomputed(torch.autograd.Function):
    """Parts of a result, behind each other, that keep nothing for the backward pass but random states."""

    @staticmethod
    def forward(
        ctx: Any, device: torch.device, parts: Sequence[Callable[..., Tensor]], rows: int, *tensors: Tensor
    ) -> Tensor:
        ctx.device, ctx.parts, ctx.rows = device, parts, rows
        ctx.autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        ctx.states, made = [], []
        for part in parts:
            ctx.states.append(_random_state(device))
            made.append(part(*tensors[:rows]))
        _release(device, len(parts))
        ctx.sizes = [len(z) for z in made]
        ctx.save_for_backward(*tensors)
        return torch.cat(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _release(ctx.device, len(ctx.parts))
        needed = ctx.needs_input_grad[3:]
        rows, trained = ctx.saved_tensors[: ctx.rows], ctx.saved_tensors[ctx.rows :]
        rows = [x.detach().requires_grad_(x.requires_grad) for x in rows]
        wanted = [x for x, need in zip([*rows, *trained], needed, strict=True) if need]
        sums: list[Tensor | None] = [None] * len(wanted)
        on, dtype = ctx.autocast
        accelerators = [] if ctx.device.type == "cpu" else [ctx.device]
        with (
            torch.random.fork_rng(accelerators, device_type=ctx.device.type if accelerators else "cuda"),
            torch.enable_grad(),
        ):
            for part, state, own in zip(ctx.parts, ctx.states, gradient.split(ctx.sizes), strict=True):
                _set_random_state(ctx.device, state)
                with torch.autocast(ctx.device.type, dtype, on):  # which a backward pass is not computed under
                    z = part(*rows)
                if not z.requires_grad:  # of a function that reads nothing which is trained
                    continue
                found = torch.autograd.grad(z, wanted, own, allow_unused=True)
                for i, (before, new) in enumerate(zip(sums, found, strict=True)):
                    if new is not None:  # cloned, because two of them may be one tensor
                        sums[i] = new.clone() if before is None else before.add_(new)
        _release(ctx.device, len(ctx.parts))
        given = iter(sums)
        return None, None, None, *(next(given) if need else None for need in needed)


def _release(device: torch.device, parts: int) -> None:
    """Give the memory of several passes back before the loss, and the loss's before them: what one has left free the
    other, whose blocks are of other sizes, does not fill. It costs page faults, which a single pass does not repay."""
    if device.type == "cpu" and parts > 1:
        give_back()


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Of the CPU's generator and, where the device is another, of its own."""
    if device.type == "cpu":
        return (torch.get_rng_state(),)
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(device)


def _set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1], device)
