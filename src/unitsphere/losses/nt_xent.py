"""NT-Xent: each of 2N views looks for its twin among the other 2N - 1.

Paper: Chen et al. 2020, SimCLR, https://arxiv.org/abs/2002.05709 (equation 1).
Relations: SimCSE (simcse.py) has N rows and N candidates, no row's own view among them, and is not symmetric.
"""

import torch

from unitsphere.losses.base import Loss, checked_temperature
from unitsphere.losses.supcon import sup_con
from unitsphere.types import Embeddings, LossOutput


class NTXent(Loss):
    """mean over 2N views of -log( exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau) ); j is i's twin, s = cosine.

    Args:
        temperature: tau; SimCLR 0.5, for sentences 0.05.
        mask_duplicates: Views of an equal text of another row are left out of the sum.
    """

    needs = ("anchor",)
    views = 2

    def __init__(self, temperature: float = 0.05, mask_duplicates: bool = True):
        super().__init__()
        self.temperature, self.mask_duplicates = checked_temperature(temperature), mask_duplicates

    def forward(self, e: Embeddings) -> LossOutput:
        text = e.batch.text_ids["anchor"].repeat(2)
        same = (text[:, None] == text) & self.mask_duplicates
        rows = torch.arange(len(text) // 2, device=text.device).repeat(2)
        negatives = (~same & (rows[:, None] != rows)).sum(dim=1).float().mean()
        return LossOutput(sup_con(torch.cat(e.anchors), rows, self.temperature, same), {"negatives": negatives})
