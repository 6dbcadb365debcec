"""InfoNCE over in-batch and explicit negatives: the supervised objective, and the arithmetic of the unsupervised one.

Papers: van den Oord et al. 2018, CPC, https://arxiv.org/abs/1807.03748; Henderson et al. 2017, in-batch negatives,
https://arxiv.org/abs/1705.00652; Gao et al. 2021, SimCSE, https://arxiv.org/abs/2104.08821 (equation 5); Chuang et al.
2020, debiased contrastive learning, https://arxiv.org/abs/2007.00224 (equations 7 and 8).
Relations: sentence-transformers' MultipleNegativesRankingLoss has `scale` = 1 / temperature; the CLIP loss is
`symmetric=true`; SimCSE (simcse.py) is this with a second dropout pass of the anchor as its positive.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss, checked_temperature
from unitsphere.types import Embeddings, LossOutput


def info_nce(
    queries: Tensor,
    candidates: Tensor,
    exclude: Tensor,
    temperature: float,
    bonus: Tensor | None = None,
    class_prior: float = 0.0,
) -> Tensor:
    """-mean_i log( p_i / (p_i + G_i) ), p_i = exp(s_ii / tau), s = cosine, in fp32.

    G_i = sum_{j != i, not excluded} exp(s_ij / tau + bonus_ij). With a class prior tau+ each of the n_i summands is
    taken for a positive with that probability, and their part is taken out:
    G_i = max( (sum - n_i tau+ p_i) / (1 - tau+), n_i exp(-1 / tau) ).

    Args:
        queries: (N, D); row i's positive is candidate i.
        candidates: (N + M, D).
        exclude: (N, N + M), True where a candidate must not count as a negative.
        temperature: tau > 0.
        bonus: (N, N + M) added to the logits, after the division by tau.
        class_prior: tau+ in [0, 1).
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, c = F.normalize(queries.float(), dim=-1), F.normalize(candidates.float(), dim=-1)
        logits = q @ c.T / temperature  # (N, D) x (D, N + M) -> (N, N + M)
        if bonus is not None:
            logits = logits + bonus
        logits, own = logits.masked_fill(exclude, float("-inf")), torch.arange(len(q), device=q.device)
        if class_prior == 0:
            return F.cross_entropy(logits, own)
        # Divided by p_i, and in double precision, in which exp(2 / tau) is a number for every tau in use.
        to_positive = logits.double() - logits[own, own].double()[:, None]
        count = (~exclude).sum(dim=1) - 1
        others = to_positive.exp().sum(dim=1) - 1
        floor = count * torch.exp(-1 / temperature - logits[own, own].double())
        ratio = torch.maximum((others - count * class_prior) / (1 - class_prior), floor)
        return torch.log1p(ratio).mean().float()


def negatives(exclude: Tensor) -> Tensor:
    """How many candidates a row is compared with on average, its positive not counted; `exclude` is (N, N + M)."""
    return (~exclude).sum(dim=1).float().mean() - 1


class InfoNCE(Loss):
    """Cross-entropy of the positive among the batch's positives and all explicit negatives.

    Args:
        temperature: tau. SimCSE 0.05, E5 0.01, sentence-transformers' default 1/20 = 0.05.
        hard_negative_weight: log alpha, added to the logit of a row's *own* negatives (the diagonal of the third block
            in SimCSE's code); 0 is alpha = 1, the paper's best.
        symmetric: Average with the loss of positives looking for their anchors (without explicit negatives).
        mask_duplicates: A positive of another row is no negative where the two rows have the same anchor text, nor is
            any candidate whose text is this row's anchor or positive. The official code does not do this.
        class_prior: tau+ of the debiased contrastive loss: the share of in-batch negatives that are positives in truth.

    Raises:
        UsageError: `class_prior` is outside [0, 1).
    """

    optional = ("negative",)

    def __init__(
        self,
        temperature: float = 0.05,
        hard_negative_weight: float = 0.0,
        symmetric: bool = False,
        mask_duplicates: bool = True,
        class_prior: float = 0.0,
    ):
        super().__init__()
        if not 0 <= class_prior < 1:
            raise UsageError(f"loss.class_prior={class_prior}: a share in [0, 1) would fit.")
        self.class_prior = class_prior
        self.temperature = checked_temperature(temperature)
        self.hard_negative_weight = hard_negative_weight
        self.symmetric = symmetric
        self.mask_duplicates = mask_duplicates

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None
        anchors, ids = e.anchors[0], e.batch.text_ids
        candidates, exclude, bonus = e.positives, self._same(ids["anchor"], ids["positive"]), None
        if e.negatives is not None:
            candidates = torch.cat([e.positives, e.negatives])
            text = ids["negative"]
            same = (text == ids["anchor"][:, None]) | (text == ids["positive"][:, None])  # (N, M)
            exclude = torch.cat([exclude, same & self.mask_duplicates], dim=1)
            own = e.batch.negative_rows == torch.arange(len(anchors), device=text.device)[:, None]  # (N, M)
            bonus = F.pad(own.float() * self.hard_negative_weight, (len(anchors), 0))
        total = info_nce(anchors, candidates, exclude, self.temperature, bonus, self.class_prior)
        if self.symmetric:
            back = self._same(ids["positive"], ids["anchor"])
            total = (total + info_nce(e.positives, anchors, back, self.temperature, None, self.class_prior)) / 2
        return LossOutput(total, {"negatives": negatives(exclude)})

    def _same(self, query: Tensor, candidate: Tensor) -> Tensor:
        """(N, N): True where row j's pair shares a text with row i's such that j is no negative for i."""
        own = torch.eye(len(query), dtype=torch.bool, device=query.device)
        shared = (query[:, None] == query) | (candidate[:, None] == candidate) | (query[:, None] == candidate)
        return shared & ~own & self.mask_duplicates
