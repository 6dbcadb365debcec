"""Optimiser and learning-rate schedule.

Papers: Loshchilov & Hutter 2019, decoupled weight decay, https://arxiv.org/abs/1711.05101.
"""

import math
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from unitsphere.errors import UsageError

SCHEDULES = ("linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup", "constant")


class AdamW:
    """AdamW without decay on biases and normalisation weights, with a schedule over the run's steps.

    Args:
        lr: Peak learning rate.
        weight_decay: Of all matrices.
        betas: Decay rates of the two moments.
        eps: Added to the root of the second moment.
        schedule: One of `SCHEDULES`, as transformers defines them.
        warmup: Share of all steps, in [0, 1), over which the rate rises from 0.
        fused: Update all numbers of a parameter in one pass through memory. The last digits differ.

    Raises:
        UsageError: No such schedule, or a warm-up outside [0, 1).
    """

    def __init__(
        self,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        schedule: str = "linear",
        warmup: float = 0.0,
        fused: bool = False,
    ):
        if schedule not in SCHEDULES:
            raise UsageError(f"optim.schedule={schedule}: {', '.join(SCHEDULES)} would fit.")
        if not 0 <= warmup < 1:
            raise UsageError(f"optim.warmup={warmup}: a share of the steps in [0, 1) would fit.")
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, betas, eps
        self.schedule, self.warmup, self.fused = schedule, warmup, fused

    def __call__(self, module: nn.Module, steps: float) -> tuple[torch.optim.Optimizer, Any]:
        """Optimiser and scheduler for `module`'s trainable parameters over `steps` steps.

        Raises:
            UsageError: The number of steps is not known, and the schedule needs it.
        """
        if math.isinf(steps):
            if self.warmup or not self.schedule.startswith("constant"):
                raise UsageError(
                    "optim.schedule: with trainer.max_time alone the number of steps is not known; set "
                    "trainer.max_steps or max_epochs too, or optim.schedule=constant optim.warmup=0"
                )
            steps = 1
        optimizer = self.over(parameter_groups(module, self.weight_decay))
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule  # the former would rise at once
        scheduler = get_scheduler(name, optimizer, round(self.warmup * steps), int(steps))
        return optimizer, scheduler

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of these parameter groups."""
        betas = self.betas[0], self.betas[1]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=self.fused)
        if self.fused:  # which could take the loss's scale off the gradients itself, but clipping comes before it
            optimizer._step_supports_amp_scaling = False
        return optimizer


class PagedAdamW8bit(AdamW):
    """AdamW with both moments in 8 bits, block by block, on pages that leave the GPU when it is full: 2 bytes a weight
    instead of 8.

    Paper: Dettmers et al. 2022, 8-bit optimizers, https://arxiv.org/abs/2110.02861. Code: bitsandbytes.

    Raises:
        UsageError: bitsandbytes is not installed.
    """

    def over(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if find_spec("bitsandbytes") is None:
            raise UsageError("optim=adamw_8bit needs bitsandbytes, and an NVIDIA GPU: pip install bitsandbytes")
        from bitsandbytes.optim import PagedAdamW8bit as Paged

        made: torch.optim.Optimizer = Paged(groups, lr=self.lr, betas=tuple(self.betas), eps=self.eps)
        return made


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors and scalars (biases, normalisation weights) do not."""

    def group(parameters: Iterable[nn.Parameter], decay: float) -> dict[str, Any]:
        return {"params": list(parameters), "weight_decay": decay}

    trainable = [p for p in module.parameters() if p.requires_grad]
    decayed, kept = (p for p in trainable if p.ndim > 1), (p for p in trainable if p.ndim <= 1)
    return [group(decayed, weight_decay), group(kept, 0.0)]
