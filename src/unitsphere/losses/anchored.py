"""A pull of the vectors towards those of the model that training started from: distillation from the start.

Papers: Li & Hoiem 2016, Learning without Forgetting, https://arxiv.org/abs/1606.09282 (with vectors for outputs);
Jung et al. 2016, https://arxiv.org/abs/1607.00122. Relations: wraps any loss; `loss=l2sp` pulls the weights;
`loss=distil_cosine` is the pull alone, from any teacher.
"""

import copy
from typing import Any

import torch
from torch.nn import functional as F

from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput


class Anchored(Loss):
    """inner + weight * mean over the batch's texts x of (1 - cos(z(x), z_0(x))).

    z_0 is a frozen copy of the embedder as the run started, without dropout, also where the run was cut and goes on: it
    reads the same tokens, prompts included. Every view of an anchor counts. It costs a forward pass more.

    Args:
        inner: The loss; it must read vectors.
        weight: 0 or more.

    Raises:
        UsageError: `weight` is negative, or the inner loss reads no vectors.
    """

    any_width = False

    def __init__(self, inner: Loss, weight: float = 1.0):
        super().__init__()
        if weight < 0:
            raise UsageError(f"loss.weight={weight}: 0 or more would fit.")
        if inner.views == 0:
            raise UsageError(
                f"{type(inner).__name__} reads no vectors, so loss=anchored has none to pull; use loss=l2sp"
            )
        self.inner, self.weight = inner, weight
        self.needs, self.optional, self.views = inner.needs, inner.optional, inner.views

    def attach(self, embedder: Any) -> None:
        self.inner.attach(embedder)
        start = copy.deepcopy(embedder).requires_grad_(False).eval()
        start.pooling.train()  # what a pooling has in training only, z has too
        self.start = (start,)  # in a tuple: not trained, not saved

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.passes is not None
        out, tokens = self.inner(e), e.batch.tokens
        made, texts = [view[e.mine] for view in e.anchors], [tokens["anchor"]]
        if e.positives is not None:
            made, texts = [*made, e.positives[e.mine]], [*texts, tokens["positive"]]
        if e.negatives is not None and "negative" in tokens:  # a queue has vectors alone
            made, texts = [*made, e.negatives[e.my_negatives]], [*texts, tokens["negative"]]
        with torch.no_grad():
            start = self.start[0].through(e.passes, [text for column in texts for text in column])
        anchor, *others = start.split([len(column) for column in texts])
        start = torch.cat([*[anchor] * len(e.anchors), *others])
        off = 1 - F.cosine_similarity(torch.cat(made).float(), start.float())
        drift = ranks.mean(off.sum(), off.new_tensor(len(off)))
        return LossOutput(out.total + self.weight * drift, {**out.parts, "drift": drift.detach()})
