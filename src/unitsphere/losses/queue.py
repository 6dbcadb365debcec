"""More negatives than a batch holds: vectors of past batches, remembered as they were, or made by a slowly moving
copy of the encoder.

Papers: Wang et al. 2020, cross-batch memory, https://arxiv.org/abs/1912.06798; He et al. 2020, MoCo,
https://arxiv.org/abs/1911.05722. Relations: gradients do not flow into remembered vectors; for a big batch with
gradients everywhere see `trainer.cache_tokens`.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput


class MemoryQueue(Loss):
    """The inner loss with up to `size` positives of past batches as further negatives of every row.

    The inner loss should read negatives (InfoNCE, Triplet). A remembered text that is equal to a row's own is no
    negative of that row, as far as the inner loss masks duplicates. Of remembered vectors there is neither text nor
    tokens: a teacher or an anchor inside sees the batch's own negatives alone.

    Args:
        inner: The loss.
        size: Vectors remembered; the oldest are forgotten first. 65,536 in MoCo.
        momentum: None remembers the batch's own positives (cross-batch memory). m in [0, 1) makes positives, now and
            later, with a copy of the embedder that follows it by theta_k <- m theta_k + (1 - m) theta; 0.999 in MoCo.
        start: Steps before remembered vectors are used, while the encoder moves fast.

    Raises:
        UsageError: `size` or `momentum` is out of range, or the inner loss does not read vectors of negatives.
    """

    any_width = False

    def __init__(self, inner: Loss, size: int = 4096, momentum: float | None = None, start: int = 0):
        super().__init__()
        if size < 1 or not (momentum is None or 0 <= momentum < 1):
            raise UsageError(f"loss.size={size} loss.momentum={momentum}: at least 1, and in [0, 1) or null.")
        if "positive" not in inner.needs or "negative" not in inner.optional or inner.views == 0:
            raise UsageError(
                f"{type(inner).__name__} does not compare an anchor with any number of negatives, so it has no use for "
                "remembered ones; loss@loss.inner=infonce or triplet would."
            )
        self.inner, self.size, self.momentum, self.start = inner, size, momentum, start
        self.needs, self.optional, self.views, self.embeds = inner.needs, inner.optional, inner.views, inner.embeds

    vectors: Tensor  # (size, D)
    text: Tensor  # (size), the texts' numbers
    seen: Tensor
    steps: Tensor

    def attach(self, embedder: Any) -> None:
        self.register_buffer("vectors", torch.zeros(self.size, embedder.dim))
        self.register_buffer("text", torch.full((self.size,), -1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        if self.momentum is not None:
            self.slow: Any = copy.deepcopy(embedder).requires_grad_(False)
            self.fast = (embedder,)  # in a tuple: it is trained elsewhere
        self.inner.attach(embedder)

    def forward(self, e: Embeddings) -> LossOutput:
        if self.momentum is not None:
            e = replace(e, positives=self._slow_positives(e))
        assert e.positives is not None
        filled = int(self.seen.clamp(max=self.size)) if int(self.steps) >= self.start else 0
        out = self.inner(self._with_memory(e, filled))
        self._remember(e.positives.detach(), e.batch.text_ids["positive"])
        return LossOutput(out.total, {**out.parts, "remembered": out.total.new_tensor(filled)})

    def _with_memory(self, e: Embeddings, filled: int) -> Embeddings:
        if not filled:
            return e
        old, text, b = self.vectors[:filled].clone(), self.text[:filled].clone(), e.batch
        none = b.text_ids["anchor"][:0]
        text_ids = {**b.text_ids, "negative": torch.cat([b.text_ids.get("negative", none), text])}
        rows = torch.cat([b.negative_rows, torch.full_like(text, -1)])  # they belong to no row
        negatives = old if e.negatives is None else torch.cat([e.negatives, old])
        own = slice(*e.my_negatives.indices(len(negatives) - filled))  # what has a text
        b = replace(b, text_ids=text_ids, negative_rows=rows)
        return replace(e, negatives=negatives, my_negatives=own, batch=b)

    @torch.no_grad()
    def _remember(self, vectors: Tensor, text: Tensor) -> None:
        vectors, text = vectors[-self.size :], text[-self.size :]
        at = (int(self.seen) + torch.arange(len(vectors), device=vectors.device)) % self.size
        self.vectors[at], self.text[at] = vectors.to(self.vectors.dtype), text
        self.seen += len(vectors)
        self.steps += 1

    @torch.no_grad()
    def _slow_positives(self, e: Embeddings) -> Tensor:
        assert e.passes is not None and self.momentum is not None
        if self.training:
            for slow, fast in zip(self.slow.parameters(), self.fast[0].parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)
        return ranks.everyone(self.slow.through(e.passes, e.batch.tokens["positive"]))
