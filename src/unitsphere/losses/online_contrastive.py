"""Contrastive loss over pairs labelled similar or not, on the hard ones of the batch only.

Papers: Hadsell et al. 2006, http://yann.lecun.com/exdb/publis/pdf/hadsell-chopra-lecun-06.pdf (the loss). The
selection is that of sentence-transformers' OnlineContrastiveLoss.
"""

from torch.nn import functional as F

from unitsphere.losses.base import Loss, checked_scores
from unitsphere.types import Embeddings, LossOutput


class OnlineContrastive(Loss):
    """sum over hard similar pairs of d^2 + sum over hard dissimilar pairs of max(0, margin - d)^2, d = 1 - cosine.

    Hard: similar pairs farther apart than the nearest dissimilar one, dissimilar pairs nearer than the farthest similar
    one. Where there is no pair of the other kind, the mean of the own kind is the bound. A pair is similar
    where its score is 0.5 or more.

    Args:
        margin: In (0, 2].

    Raises:
        UsageError: A score is not in [0, 1].
    """

    needs = ("anchor", "positive", "score")

    def __init__(self, margin: float = 0.5):
        super().__init__()
        self.margin = margin

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None and e.batch.scores is not None
        distance = 1 - F.cosine_similarity(e.anchors[0].float(), e.positives.float())
        similar = checked_scores(e.batch.scores) >= 0.5
        near, far = distance[similar], distance[~similar]
        hard_far = far[far < (near.max() if len(near) else far.mean())]
        hard_near = near[near > (far.min() if len(far) else near.mean())]
        return LossOutput(hard_near.square().sum() + F.relu(self.margin - hard_far).square().sum())
