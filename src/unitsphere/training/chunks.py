"""Encode a batch in length-sorted chunks, each padded to its own longest text: the same vectors with less padding."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from unitsphere.embedder import Embedder
from unitsphere.types import Batch, Embeddings, Text, Tokens


class LengthSorted:
    """Runs a function over texts in length-sorted chunks (see `types.Passes`).

    Args:
        pad: Texts to padded `Tokens`.
        chunks: Passes a batch; 1 pads all texts to the longest.
        device: Where the model is.
    """

    def __init__(self, pad: Callable[[Sequence[Text]], Tokens], chunks: int, device: torch.device):
        self.pad, self.chunks, self.device = pad, chunks, device

    def __call__(self, texts: Sequence[Text], function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        divided = self.divide([len(text.ids) for text in texts])
        back = torch.from_numpy(np.argsort(np.concatenate(divided), kind="stable"))
        parts = [partial(self.part, texts, chunk, function) for chunk in divided]
        return self.compute(parts, rows)[back.to(self.device)]

    def divide(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """The numbers of the texts in each pass, those of the longest first."""
        order = np.argsort(-np.asarray(lengths), kind="stable")
        return np.array_split(order, min(self.chunks, len(order)))

    def compute(self, parts: Sequence[Callable[..., Tensor]], rows: Sequence[Tensor]) -> Tensor:
        """The results of all passes behind each other."""
        return torch.cat([part(*rows) for part in parts])

    def part(self, texts: Sequence[Text], chunk: np.ndarray, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """The result of one pass."""
        tokens = self.pad([texts[i] for i in chunk])
        moved = Tokens(*(x.to(self.device) for x in (tokens.ids, tokens.mask, tokens.prompt)))
        return function(moved, *(x[torch.from_numpy(chunk).to(x.device)] for x in rows))

    def at_once(self) -> "LengthSorted":
        """The same in a single pass, where passes only save padding."""
        return LengthSorted(self.pad, 1, self.device)


def embeddings(embedder: Embedder, batch: Batch, views: int, passes: LengthSorted) -> Embeddings:
    """Every text of a batch, anchors `views` times, through the encoder together.

    The views of an anchor are rows of the same pass, so each has its own dropout mask. With 0 views nothing is encoded.
    """
    if views == 0:
        return Embeddings((), None, None, batch, passes=passes)
    anchors = batch.tokens["anchor"]
    positives, negatives = batch.tokens.get("positive", ()), batch.tokens.get("negative", ())
    sizes = [len(anchors)] * views + [len(positives), len(negatives)]
    mine = passes.at_once() if embedder.encoder.groups is not None else passes  # there is no padding to save
    z = embedder.through(mine, [*list(anchors) * views, *positives, *negatives])
    *seen, z_positive, z_negative = z.split(sizes)
    return Embeddings(
        anchors=tuple(seen),
        positives=z_positive if "positive" in batch.tokens else None,
        negatives=z_negative if "negative" in batch.tokens else None,
        batch=batch,
        passes=passes,
    )
