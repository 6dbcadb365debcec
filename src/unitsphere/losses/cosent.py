"""CoSENT: pairs with a higher score must have a higher cosine.

Source: Su 2022, https://kexue.fm/archives/8847. Relations: sentence-transformers' CoSENTLoss has scale = 1 /
temperature; AnglE (angle.py) is the same ranking of another similarity.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from unitsphere.losses.base import Loss, checked_temperature
from unitsphere.types import Embeddings, LossOutput


def ranked(similarity: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """log( 1 + sum_{i, j: score_i < score_j} exp((s_i - s_j) / tau) ).

    Args:
        similarity: s, (N).
        scores: (N).
        temperature: tau > 0.
    """
    difference = (similarity[:, None] - similarity) / temperature  # (N, N): s_i - s_j
    wrong_way = scores[:, None] < scores
    return torch.cat([difference.new_zeros(1), difference[wrong_way]]).logsumexp(dim=0)


class CoSENT(Loss):
    """The ranking loss of the cosines of scored pairs.

    Args:
        temperature: tau; 0.05 in the source.
    """

    needs = ("anchor", "positive", "score")
    similarity: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.cosine_similarity)  # (N, D), (N, D) -> (N)

    def __init__(self, temperature: float = 0.05):
        super().__init__()
        self.temperature = checked_temperature(temperature)

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None and e.batch.scores is not None
        similarity = self.similarity(e.anchors[0].float(), e.positives.float())
        return LossOutput(ranked(similarity, e.batch.scores, self.temperature))
