"""Evaluation by all ranks of a run: they divide the texts, have the same vectors, and fail together.

Without this every rank would embed every text, and an evaluator that fails on one rank would leave the others waiting
for it until the process group gives up, half an hour later.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from unitsphere import ranks
from unitsphere.types import Embed, Result


class SharedEmbed:
    """An `Embed` that every rank calls with the same texts; each embeds every world-th of them.

    Args:
        embed: This rank's.
        device: Where vectors are when they are exchanged.
        divide: Otherwise every rank embeds all: sharded weights need as many forward passes on each.
    """

    def __init__(self, embed: Embed, device: torch.device, divide: bool):
        self.embed, self.device, self.divide = embed, device, divide

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        world = dist.get_world_size()
        if not self.divide or len(texts) < world:
            ranks.all_well()  # before the forward passes, which sharded weights make together
            return self.embed(texts, role, max_length, prompt)
        mine = self.embed(texts[dist.get_rank() :: world], role, max_length, prompt)
        ranks.all_well()  # a rank that has failed, here or since the last time, is at `together`'s
        everyone = ranks.everyone(torch.from_numpy(mine).to(self.device)).cpu().numpy()
        order = np.concatenate([np.arange(len(texts))[rank::world] for rank in range(world)])
        out = np.empty_like(everyone)
        out[order] = everyone
        return out


def together(scored: Callable[[], Result]) -> Result:
    """What `scored` returns, with the first rank's numbers on every rank, so that all choose the same checkpoint.

    Raises:
        Exception: It failed here.
        FailedElsewhere: It failed on another rank.
    """
    try:
        result = scored()
    except ranks.FailedElsewhere:
        raise
    except Exception as error:
        ranks.all_well(error)
        raise
    ranks.all_well()
    shared: dict[str, Any] = ranks.from_first({key: getattr(result, key) for key in ("metrics", "primary", "protocol")})
    return replace(result, **shared)


def clock() -> float:
    """The first rank's seconds, so that the time is over for all at once."""
    ranks.all_well()
    return float(ranks.from_first(time.monotonic()))
