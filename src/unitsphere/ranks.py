"""What the processes of one run share. In a single process every function gives back what it was given.

The gradient is that of one process with the whole batch. A batch loss sees every rank's vectors: each rank computes the
full loss, the backward pass of `everyone` adds up what all ranks ask of a vector, world times too much, and DDP's mean
over ranks divides by world. A token loss sees this rank's rows: `mean` multiplies by world what DDP will divide.
Code read: torch.distributed.nn.functional; the gather of princeton-nlp/SimCSE, which differs by the factor world.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from unitsphere.errors import UsageError


def several() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def starts(mine: int, device: torch.device) -> tuple[int, int]:
    """Where this rank's rows begin among those of all ranks, and how many all have; `mine` is this rank's number."""
    if not several():
        return 0, mine
    sizes = _sizes(mine, device)
    return sum(sizes[: dist.get_rank()]), sum(sizes)


def everyone(x: Tensor) -> Tensor:
    """(r, …) of each rank to (R, …), rank after rank, whatever the lengths; gradients flow back to every rank."""
    if not several():
        return x
    sizes = _sizes(len(x), x.device)
    padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    gathered = _Gathered.apply(padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def from_first(value: Any) -> Any:
    """The first rank's value, on every rank; anything that can be pickled."""
    if not several():
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def summed(counts: Mapping[Any, tuple[int, int]]) -> dict[Any, tuple[int, int]]:
    """The sums of every rank's two counts, key by key, on every rank."""
    parts: list[Any] = [dict(counts)]
    if several():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, dict(counts))
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: (sum(p.get(key, (0, 0))[0] for p in parts), sum(p.get(key, (0, 0))[1] for p in parts)) for key in keys}


class FailedElsewhere(UsageError):
    """Another rank has failed, and has said so."""


def all_well(error: Exception | None = None) -> None:
    """A point that every rank passes, or none: where one comes with an error, all raise.

    Raises:
        Exception: The error that this rank brought.
        FailedElsewhere: It names another rank's.
    """
    if several():
        said: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(said, error and f"{type(error).__name__}: {error}")
        failed = [f"rank {rank} failed: {message}" for rank, message in enumerate(said) if message is not None]
        if error is None and failed:
            raise FailedElsewhere("; ".join(failed))
    if error is not None:
        raise error


def mean(total: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean over all ranks' rows, from this rank's weighted sum and its weight, in the form whose gradient
    is right after DDP's mean over ranks."""
    weight = weight.detach().float()
    if not several():
        return total / weight.clamp(min=1e-9)
    whole = weight.clone()
    dist.all_reduce(whole)
    local = dist.get_world_size() * total / whole.clamp(min=1e-9)
    value = local.detach().clone()
    dist.all_reduce(value)
    return local + (value / dist.get_world_size() - local.detach())  # every rank reports the same number


def _sizes(mine: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([mine], device=device))
    return [int(size) for size in sizes]


class _Gathered(torch.autograd.Function):
    """(r, …), equally long on every rank, to (ranks, r, …); the gradient is the sum of what all ranks ask of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        asked = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(asked)
        return asked[dist.get_rank()]
