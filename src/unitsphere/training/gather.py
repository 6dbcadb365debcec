"""Put the batch of all ranks together, so that every rank's loss sees every negative (see ranks.py)."""

from dataclasses import replace

from torch import Tensor

from unitsphere import ranks
from unitsphere.ranks import everyone
from unitsphere.types import Embeddings


def gather(e: Embeddings) -> Embeddings:
    """The embeddings of all ranks, rank after rank; of one process, unchanged."""
    if not ranks.several():
        return e
    b, device = e.batch, e.batch.row_ids.device
    start, _ = ranks.starts(len(b.row_ids), device)
    first_negative, _ = ranks.starts(len(b.negative_rows), device)
    batch = replace(
        b,
        text_ids={column: everyone(ids) for column, ids in b.text_ids.items()},
        negative_rows=everyone(b.negative_rows + start),
        row_ids=everyone(b.row_ids),
        labels=_maybe(b.labels),
        scores=_maybe(b.scores),
    )
    return replace(
        e,
        anchors=tuple(everyone(z) for z in e.anchors),
        positives=_maybe(e.positives),
        negatives=_maybe(e.negatives),
        batch=batch,
        mine=slice(start, start + len(b.row_ids)),
        my_negatives=slice(first_negative, first_negative + len(b.negative_rows)),
    )


def _maybe(x: Tensor | None) -> Tensor | None:
    return None if x is None else everyone(x)
