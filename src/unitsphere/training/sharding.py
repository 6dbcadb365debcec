"""Weights, gradients and optimiser state divided among the ranks (FSDP2), for encoders that one GPU cannot hold.

Paper: Zhao et al. 2023, PyTorch FSDP, https://arxiv.org/abs/2304.11277. Code read: torch.distributed.fsdp.fully_shard.
A transformer layer is gathered just before it computes and let go after; gradients are the mean over ranks, as in DDP.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from unitsphere.embedder import Embedder
from unitsphere.encoders.layers import layer_list
from unitsphere.errors import UsageError


def shard(embedder: Embedder, loss: nn.Module, mesh: Any) -> None:
    """Divide an embedder's weights, layer by layer, in place.

    Raises:
        UsageError: The loss has networks of its own: they would share the encoder's weights or read its layers apart;
            or texts are read in windows.
    """
    if next(iter(loss.parameters()), None) is not None:
        raise UsageError("trainer=fsdp divides the encoder's weights only, and this loss has some too: use trainer=ddp")
    if embedder.windows is not None:  # a rank with more windows than another would wait for it for ever
        raise UsageError("trainer=fsdp does not go with window=…: use trainer=ddp")
    layers, name = layer_list(embedder.encoder.model)
    for layer in getattr(layers, name):
        fully_shard(layer, mesh=mesh)
    fully_shard(embedder, mesh=mesh)


def sharded(embedder: Embedder) -> bool:
    """Whether each rank has only a part of the weights."""
    return isinstance(embedder, FSDPModule)


def whole(embedder: Embedder) -> dict[str, Tensor]:
    """All weights on the CPU. Every rank must call this; where they are sharded, rank 0 alone gets them."""
    state: Any = get_model_state_dict(embedder, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: weight.contiguous() for name, weight in state.items()}


@torch.no_grad()
def take(embedder: Embedder, weights: Mapping[str, Tensor]) -> None:
    """Replace all weights. Where they are sharded, every rank must call this, with all of them, and keeps its part."""
    if not sharded(embedder):
        embedder.load_state_dict(weights)
        return
    for name, mine in embedder.state_dict().items():
        weight = weights[name].to(mine.device)
        if isinstance(mine, DTensor):
            weight = distribute_tensor(weight, mine.device_mesh, mine.placements, src_data_rank=None)
        mine.copy_(weight)
