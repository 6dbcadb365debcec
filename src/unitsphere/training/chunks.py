"""Encode a batch in length-sorted chunks, each padded to its own longest text: the same vectors with less padding; and,
recomputing each chunk in the backward pass, in memory that does not grow with the batch.

Papers: Gao et al. 2021, gradient cache, https://arxiv.org/abs/2101.06983; Chen et al. 2016, recomputation,
https://arxiv.org/abs/1604.06174. The gradient cache *is* recomputation with a chunk as its unit: the forward pass keeps
only a chunk's vectors, the loss sees all of them, and the backward pass goes through one chunk at a time, computed
again under the random state that it had. So it holds for every loss, with dropout, mixed precision and several ranks.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unitsphere.embedder import Embedder
from unitsphere.encoders.reader import longest_first
from unitsphere.heap import give_back
from unitsphere.types import Batch, Embeddings, Text, Tokens

RELEASE = 8  # passes of the gradient cache between two times that free memory is given back, which costs page faults


class LengthSorted:
    """Runs a function over texts in length-sorted chunks (see `types.Passes`).

    Args:
        pad: Texts to padded `Tokens`.
        chunks: Passes a batch; 1 pads all texts to the longest.
        cache_tokens: Padded tokens a pass, each pass computed again in the backward pass; None keeps everything, in
            `chunks` passes.
        device: Where the model is.
    """

    def __init__(
        self, pad: Callable[[Sequence[Text]], Tokens], chunks: int, cache_tokens: int | None, device: torch.device
    ):
        self.pad, self.chunks, self.cache_tokens, self.device = pad, chunks, cache_tokens, device

    def __call__(self, texts: Sequence[Text], function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        lengths = [len(text.ids) for text in texts]
        if self.cache_tokens is None:
            order = np.argsort(-np.asarray(lengths), kind="stable")
            chunks = np.array_split(order, min(self.chunks, len(texts)))
        else:
            chunks = list(longest_first(lengths, self.cache_tokens))
        parts = []
        for number, chunk in enumerate(chunks):
            tokens = self.pad([texts[i] for i in chunk])
            given = [x.to(self.device) for x in (tokens.ids, tokens.mask, tokens.prompt)]
            given += [x[torch.from_numpy(chunk).to(x.device)] for x in rows]
            if self.cache_tokens is None:
                parts.append(self._pass(function, *given))
            else:  # plain tensors: by them it finds the device whose random state it has to restore
                parts.append(checkpoint(self._pass, function, *given, use_reentrant=False))
                if number % RELEASE == 0:
                    _release(parts[-1])
        back = torch.from_numpy(np.argsort(np.concatenate(chunks), kind="stable")).to(self.device)
        return torch.cat(parts)[back]

    def at_once(self) -> "LengthSorted":
        """The same in a single chunk, unless passes are computed again in the backward pass."""
        return LengthSorted(self.pad, 1, self.cache_tokens, self.device)

    @staticmethod
    def _pass(function: Callable[..., Tensor], ids: Tensor, mask: Tensor, prompt: Tensor, *rows: Tensor) -> Tensor:
        return function(Tokens(ids, mask, prompt), *rows)


def _release(z: Tensor) -> None:
    """Give back the memory of the passes before: now that z is there, and before it is computed again. What is kept of
    a pass is little, but lies everywhere between what was freed, so that a later one would not find room."""
    if z.device.type == "cpu":
        give_back()
        if z.requires_grad:
            z.register_hook(lambda gradient: give_back())


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
