"""A projector in training only: the loss sees projected vectors, evaluation the vectors themselves.

Papers: Chen et al. 2020, SimCLR, https://arxiv.org/abs/2002.05709 (a head that is thrown away); Chuang et al. 2022,
DiffCSE, https://arxiv.org/abs/2204.10298 (with BatchNorm). Here and not in the pooling, because BatchNorm must see
the whole batch, of all chunks and ranks, at once.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unitsphere.losses.base import Loss, through
from unitsphere.types import Embeddings, LossOutput


class Projected(Loss):
    """L(P(z)) for any L; all views and columns pass P together.

    With BatchNorm, as DiffCSE: Linear(D, 2D) - BN - ReLU - Linear(2D, D) - BN without affine parameters, linear maps
    without bias. Without: Linear(D, D) - tanh, as SimCSE's MLP. D is the embedder's width.

    Args:
        inner: L.
        batchnorm: Which of the two.
    """

    any_width = False

    def __init__(self, inner: Loss, batchnorm: bool = True):
        super().__init__()
        self.inner, self.batchnorm = inner, batchnorm
        self.needs, self.optional, self.views = inner.needs, inner.optional, inner.views

    def attach(self, embedder: Any) -> None:
        d = embedder.dim
        if self.batchnorm:
            self.projector = nn.Sequential(
                nn.Linear(d, 2 * d, bias=False),
                nn.BatchNorm1d(2 * d),
                nn.ReLU(),
                nn.Linear(2 * d, d, bias=False),
                nn.BatchNorm1d(d, affine=False),
            )
        else:
            self.projector = nn.Sequential(nn.Linear(d, d), nn.Tanh())
        self.inner.attach(embedder)

    def forward(self, e: Embeddings) -> LossOutput:
        columns: list[Tensor] = [*e.anchors, *(z for z in (e.positives, e.negatives) if z is not None)]
        pieces = list(through(self.projector, torch.cat(columns)).split([len(z) for z in columns]))
        anchors = tuple(pieces.pop(0) for _ in e.anchors)
        positives = pieces.pop(0) if e.positives is not None else None
        negatives = pieces.pop(0) if e.negatives is not None else None
        return self.inner(replace(e, anchors=anchors, positives=positives, negatives=negatives))
