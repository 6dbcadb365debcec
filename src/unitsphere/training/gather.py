"""Put the batch of all ranks together, so that every rank's loss sees every negative.

The gradient is that of one process with the whole batch: each rank computes the full loss; the backward pass of the
gather adds up what all ranks ask of a vector, world times too much; DDP's mean over ranks divides by world.
Code read: torch.distributed.nn.functional; the gather of princeton-nlp/SimCSE, which differs by that factor.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from unitsphere.types import Batch, Embeddings


def gather(e: Embeddings) -> Embeddings:
    """The embeddings of all ranks, rank after rank; of one process, unchanged."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return e
    b, rows = e.batch, _sizes(len(e.anchors[0]), e.anchors[0].device)
    start = sum(rows[: dist.get_rank()])
    batch = Batch(
        tokens={},
        text_ids={column: _cat(ids) for column, ids in b.text_ids.items()},
        negative_rows=_cat(b.negative_rows + start),
        row_ids=_cat(b.row_ids),
        labels=None if b.labels is None else _cat(b.labels),
        scores=None if b.scores is None else _cat(b.scores),
    )
    return replace(
        e,
        anchors=tuple(_cat(z) for z in e.anchors),
        positives=None if e.positives is None else _cat(e.positives),
        negatives=None if e.negatives is None else _cat(e.negatives),
        batch=batch,
    )


def _sizes(mine: int, device: torch.device) -> list[int]:
    sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([mine], device=device))
    return [int(size) for size in sizes]


def _cat(x: Tensor) -> Tensor:
    """Concatenate a tensor of any length over ranks: padded to the longest, gathered, cut back."""
    sizes = _sizes(len(x), x.device)
    padded = torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    gathered: Sequence[Tensor]
    if x.is_floating_point() and x.requires_grad:
        gathered = all_gather(padded)
    else:
        gathered = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(list(gathered), padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
