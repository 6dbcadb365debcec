"""Supervised contrastive learning over class labels: every other row of a row's class is its positive.

Paper: Khosla et al. 2020, https://arxiv.org/abs/2004.11362 (equation 2, L_out). Code read: HobbitLong/SupContrast,
whose factor temperature / base_temperature is 1 here. Relations: with one's own row as the class this is NT-Xent
(nt_xent.py).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss, checked_temperature
from unitsphere.types import Embeddings, LossOutput


def sup_con(z: Tensor, labels: Tensor, temperature: float, exclude: Tensor | None = None) -> Tensor:
    """mean_i -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / tau) / sum_{a != i} exp(s_ia / tau) ), s = cosine, in fp32.

    P(i) are the other rows with i's label; rows that have none are left out of the mean.

    Args:
        z: (R, D).
        labels: (R).
        temperature: tau > 0.
        exclude: (R, R), True where a row must not stand in another's denominator.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=-1)
        self_ = torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = (labels[:, None] == labels) & ~self_
        hidden = self_ if exclude is None else self_ | (exclude & ~positive)
        logits = (z @ z.T / temperature).masked_fill(hidden, float("-inf"))
        log_p = logits - logits.logsumexp(dim=1, keepdim=True)  # (R, R)
        count = positive.sum(dim=1)
        rows = -log_p.masked_fill(~positive, 0).sum(dim=1) / count.clamp(min=1)
        return rows[count > 0].sum() / (count > 0).sum().clamp(min=1)


class SupCon(Loss):
    """L_out over the anchors' labels.

    A batch should hold several rows of a class: see `sampler=class_balanced`.

    Args:
        temperature: tau; 0.1 in the paper (images), 0.05 is SimCSE's.
        views: Dropout passes of each anchor; 2 in the paper (there, augmentations), 1 compares different texts only.

    Raises:
        UsageError: `views` is less than 1.
    """

    needs = ("anchor", "label")

    def __init__(self, temperature: float = 0.1, views: int = 2):
        super().__init__()
        if views < 1:
            raise UsageError(f"loss.views={views}: 1 or more would fit.")
        self.temperature, self.views = checked_temperature(temperature), views

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.batch.labels is not None
        labels = e.batch.labels.repeat(len(e.anchors))
        negatives = (labels[:, None] != labels).sum(dim=1).float().mean()
        return LossOutput(sup_con(torch.cat(e.anchors), labels, self.temperature), {"negatives": negatives})
