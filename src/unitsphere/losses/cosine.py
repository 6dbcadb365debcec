"""Regression of the cosine on a score.

Paper: Reimers & Gurevych 2019, Sentence-BERT, https://arxiv.org/abs/1908.10084 (section 3, regression objective).
"""

from torch.nn import functional as F

from unitsphere.losses.base import Loss, checked_scores
from unitsphere.types import Embeddings, LossOutput


class CosineSimilarity(Loss):
    """mean (cos(a, b) - score)^2.

    Raises:
        UsageError: A score is not in [-1, 1].
    """

    needs = ("anchor", "positive", "score")

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None and e.batch.scores is not None
        cosine = F.cosine_similarity(e.anchors[0].float(), e.positives.float())
        return LossOutput(F.mse_loss(cosine, checked_scores(e.batch.scores, lowest=-1.0)))
