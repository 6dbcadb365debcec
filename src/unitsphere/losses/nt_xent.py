"""NT-Xent: each of 2N views looks for its twin among the other 2N - 1.

Papers: Chen et al. 2020, SimCLR, https://arxiv.org/abs/2002.05709 (equation 1); Li & Li 2023, AnglE,
https://arxiv.org/abs/2309.12871 (equation 5: the same over scored pairs). Code read: SeanLee97/AnglE.
Relations: SimCSE (simcse.py) has N rows and N candidates, no row's own view among them, and is not symmetric.
"""

import torch
from torch import Tensor

from unitsphere.losses.base import Loss, checked_scores, checked_temperature
from unitsphere.losses.supcon import sup_con
from unitsphere.types import Embeddings, LossOutput


class NTXent(Loss):
    """mean over 2N views of -log( exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau) ); j is i's twin, s = cosine.

    Args:
        temperature: tau; SimCLR 0.5, for sentences 0.05.
        mask_duplicates: Views of an equal text of another row are left out of the sum.
    """

    needs: tuple[str, ...] = ("anchor",)
    views = 2

    def __init__(self, temperature: float = 0.05, mask_duplicates: bool = True):
        super().__init__()
        self.temperature, self.mask_duplicates = checked_temperature(temperature), mask_duplicates

    def forward(self, e: Embeddings) -> LossOutput:
        text = e.batch.text_ids["anchor"].repeat(2)
        rows = torch.arange(len(text) // 2, device=text.device).repeat(2)
        return self.compare(torch.cat(e.anchors), rows, text)

    def compare(self, z: Tensor, rows: Tensor, text: Tensor) -> LossOutput:
        """The loss of views z (2N, D), twins where `rows` (2N) are equal, of the texts `text` (2N)."""
        same = (text[:, None] == text) & self.mask_duplicates
        negatives = (~same & (rows[:, None] != rows)).sum(dim=1).float().mean()
        return LossOutput(sup_con(z, rows, self.temperature, same), {"negatives": negatives})


class ScoredNTXent(NTXent):
    """NT-Xent whose twins are the two texts of a pair with a high score; the texts of other pairs are negatives only.

    AnglE's in-batch term. Its code takes the mean over all 2N texts, those without a twin counting 0; here the mean is
    over those that have one.

    Args:
        positive_from: The score, 0 to 1, from which a pair's texts are twins.
        temperature, mask_duplicates: As for `NTXent`.

    Raises:
        UsageError: A score is not in [0, 1].
    """

    needs = ("anchor", "positive", "score")
    views = 1

    def __init__(self, positive_from: float = 0.8, temperature: float = 0.05, mask_duplicates: bool = True):
        super().__init__(temperature, mask_duplicates)
        self.positive_from = positive_from

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None and e.batch.scores is not None
        first = torch.arange(len(e.positives), device=e.positives.device)
        second = torch.where(checked_scores(e.batch.scores) >= self.positive_from, first, first + len(first))
        text = torch.cat([e.batch.text_ids["anchor"], e.batch.text_ids["positive"]])
        return self.compare(torch.cat([e.anchors[0], e.positives]), torch.cat([first, second]), text)
