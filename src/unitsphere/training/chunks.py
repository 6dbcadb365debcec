"""Encode a batch in length-sorted chunks, each padded to its own longest text: the same vectors with less padding."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unitsphere.embedder import Embedder
from unitsphere.types import Batch, Embeddings, Tokens


def encode(embedder: Embedder, sequences: Sequence[np.ndarray], chunks: int, device: torch.device) -> Tensor:
    """Token ids of R texts to vectors (R, dim), in the order given.

    Args:
        embedder: Maps padded tokens to vectors.
        sequences: One array of token ids a text.
        chunks: Forward passes; 1 pads all texts to the longest.
        device: Where the model is.
    """
    order = np.argsort([len(s) for s in sequences], kind="stable")
    parts = []
    for rows in np.array_split(order, min(chunks, len(sequences))):
        tokens = embedder.encoder.pad([sequences[i] for i in rows])
        parts.append(embedder(Tokens(tokens.ids.to(device), tokens.mask.to(device))))
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(device)
    return torch.cat(parts)[back]


def embeddings(embedder: Embedder, batch: Batch, views: int, chunks: int, device: torch.device) -> Embeddings:
    """Every text of a batch, anchors `views` times, through the encoder together.

    The views of an anchor are rows of the same pass, so each has its own dropout mask.
    """
    anchors = batch.tokens["anchor"]
    positives, negatives = batch.tokens.get("positive", ()), batch.tokens.get("negative", ())
    sizes = [len(anchors)] * views + [len(positives), len(negatives)]
    z = encode(embedder, [*list(anchors) * views, *positives, *negatives], chunks, device)
    *seen, z_positive, z_negative = z.split(sizes)
    return Embeddings(
        anchors=tuple(seen),
        positives=z_positive if "positive" in batch.tokens else None,
        negatives=z_negative if "negative" in batch.tokens else None,
        batch=batch,
    )
