"""A pull of the weights towards those that training started from.

Paper: Li, Grandvalet & Davoine 2018, L2-SP, https://arxiv.org/abs/1802.01483 (equation 2). Relations: wraps any loss;
`loss=anchored` pulls the vectors instead of the weights.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput


class L2SP(Loss):
    """inner + weight / 2 * ||theta - theta_0||^2, over the encoder's trained weights theta.

    theta_0 are the weights that the run started from, also where it was cut and goes on: they are those of the model
    that the configuration names, and no part of a checkpoint. Pooling and projection are free, as what is new is in the
    paper's L2-SP without its beta term. Each rank holds all of theta_0, under FSDP too.

    Args:
        inner: The loss.
        weight: 0 or more; alpha in the paper, which tries 0.001 to 1 under SGD.

    Raises:
        UsageError: `weight` is negative.
    """

    any_width = False  # Matryoshka goes inside: around it, the pull would count once a width

    def __init__(self, inner: Loss, weight: float = 0.1):
        super().__init__()
        if weight < 0:
            raise UsageError(f"loss.weight={weight}: 0 or more would fit.")
        self.inner, self.weight = inner, weight
        self.needs, self.optional, self.views, self.embeds = inner.needs, inner.optional, inner.views, inner.embeds

    def attach(self, embedder: Any) -> None:
        self.inner.attach(embedder)
        self.encoder = (embedder.encoder,)  # in a tuple: it is trained elsewhere
        trained = {name: p for name, p in embedder.encoder.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in trained.items()}

    def forward(self, e: Embeddings) -> LossOutput:
        out = self.inner(e)
        squares = [_squares(p - self._at_start(name, p)) for name, p in self._trained()]
        distance = torch.stack(squares).sum()
        return LossOutput(out.total + self.weight / 2 * distance, {**out.parts, "moved": distance.detach().sqrt()})

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.encoder[0].named_parameters() if name in self.start]

    def _at_start(self, name: str, p: Tensor) -> Tensor:
        start = self.start[name].to(p.device)
        return (
            distribute_tensor(start, p.device_mesh, p.placements, src_data_rank=None)
            if isinstance(p, DTensor)
            else start
        )


def _squares(x: Tensor) -> Tensor:
    """Sum of squares, of all ranks' parts where the weights are divided among them."""
    total = x.square().sum()
    return total.full_tensor() if isinstance(total, DTensor) else total
