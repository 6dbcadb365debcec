"""Margin-MSE: the student's margin between a positive and a negative imitates a cross-encoder's.

Paper: Hofstätter et al. 2020, https://arxiv.org/abs/2010.02666 (equation 5). Relations: sentence-transformers'
MarginMSELoss with scale=1 on vectors that are not normalised.
"""

from collections.abc import Callable
from typing import Any

import torch

from unitsphere import ranks
from unitsphere.digest import digest
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.losses.teacher import Teacher
from unitsphere.types import Embeddings, LossOutput


class MarginMSE(Loss):
    """mean over negatives n of ( scale (a.p - a.n) - (T(a, p) - T(a, n)) )^2.

    Args:
        teacher: Called without arguments; returns a cross-encoder that scores pairs of texts. None: the data's `score`
            column is the margin of a row, whatever its number of negatives.
        scale: Of the student's dot products, which lie in [-1, 1] where vectors are normalised; a cross-encoder's
            margins are around 10.

    Raises:
        UsageError: The student's vectors are normalised, so that it cannot reach such margins with scale 1.
    """

    needs: tuple[str, ...] = ("anchor", "positive", "negative")

    def __init__(self, teacher: Callable[[], Any] | None = None, scale: float = 1.0):
        super().__init__()
        self.make, self.scale = teacher, scale
        if teacher is None:
            self.needs = (*self.needs, "score")

    def attach(self, embedder: Any) -> None:
        if self.make is not None:
            if embedder.normalize and self.scale <= 1:
                raise UsageError(
                    "margin_mse: dot products of normalised vectors lie in [-1, 1], a cross-encoder's margins "
                    "around 10. Set embedder.normalize=false as the paper does, or loss.scale=10"
                )
            scorer = self.make()
            self.teacher = Teacher(scorer, 1, f"{digest(scorer.model)} {scorer.max_length}", scorer.model)

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None and e.negatives is not None
        a, p = e.anchors[0][e.mine].float(), e.positives[e.mine].float()
        negatives = e.negatives[e.my_negatives].float()
        owner = e.batch.negative_rows[e.my_negatives] - (e.mine.start or 0)
        margins = self.scale * ((a * p).sum(dim=1)[owner] - (a[owner] * negatives).sum(dim=1))  # (m)
        if self.make is None:
            assert e.batch.scores is not None
            wanted = e.batch.scores[e.mine][owner]
        else:
            texts, device = e.batch.texts, a.device
            right = self.teacher(list(zip(texts["anchor"], texts["positive"], strict=True)), device)[:, 0]
            asked = [texts["anchor"][i] for i in owner.tolist()]
            wrong = self.teacher(list(zip(asked, texts["negative"], strict=True)), device)[:, 0]
            wanted = right[owner] - wrong
        return LossOutput(ranks.mean((margins - wanted).square().sum(), torch.tensor(len(margins), device=a.device)))
