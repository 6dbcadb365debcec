"""Unsupervised SimCSE: a sentence is its own positive, under another dropout mask.

Paper: Gao et al. 2021, https://arxiv.org/abs/2104.08821 (equation 4). Code read: princeton-nlp/SimCSE.
Published: BERT-base 76.25 on the seven STS tasks (temperature 0.05, dropout 0.1, cls_mlp with train_only).
"""

import torch

from unitsphere.losses.base import Loss, checked_temperature
from unitsphere.losses.infonce import info_nce, negatives
from unitsphere.types import Embeddings, LossOutput


class SimCSE(Loss):
    """-mean_i log( exp(cos(z_i, z'_i) / tau) / sum_j exp(cos(z_i, z'_j) / tau) ); z and z' are two dropout passes.

    Rows are the first view only: neither symmetric nor NT-Xent, as in the official code.

    Args:
        temperature: tau; 0.05 in the paper.
        mask_duplicates: Equal texts in a batch are not each other's negatives. The official code does not do this.
        fixed_mask: One dropout mask for both views, so that z' = z: the paper's ablation that collapses (43.6 on STS-B
            dev, where two masks give 82.5).
    """

    needs = ("anchor",)

    def __init__(self, temperature: float = 0.05, mask_duplicates: bool = True, fixed_mask: bool = False):
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.mask_duplicates = mask_duplicates
        self.views = 1 if fixed_mask else 2

    def forward(self, e: Embeddings) -> LossOutput:
        text = e.batch.text_ids["anchor"]
        own = torch.eye(len(text), dtype=torch.bool, device=text.device)
        exclude = (text[:, None] == text) & ~own & self.mask_duplicates
        total = info_nce(e.anchors[0], e.anchors[-1], exclude, self.temperature)
        return LossOutput(total, {"negatives": negatives(exclude)})
