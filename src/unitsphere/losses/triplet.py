"""Triplet margin loss, with the negatives that the data gives or with those that a miner finds in the batch.

Papers: Schroff et al. 2015, FaceNet, https://arxiv.org/abs/1503.03832 (semi-hard); Hermans et al. 2017,
https://arxiv.org/abs/1703.07737 (batch hard, batch all). Relations: sentence-transformers' TripletLoss is
`miner=explicit` with distance=euclidean and margin=5, on vectors that are not normalised.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput

MINERS = ("explicit", "hard", "semi_hard", "all")


class Triplet(Loss):
    """mean max(0, d(a, p) - d(a, n) + margin).

    Args:
        margin: Of a positive before a negative.
        distance: "cosine" (1 - cos, in [0, 2]) or "euclidean".
        miner: Which n. "explicit": the row's own negatives; "hard": the nearest in the batch; "semi_hard": the
            nearest of those beyond the positive but within the margin, rows without one counting 0; "all": every one
            in the batch, in a mean over the triplets that are not 0. In the batch are the other rows' positives and
            all explicit negatives, without those whose text is the row's anchor or positive and positives of an equal
            anchor.

    Raises:
        UsageError: No such miner or distance; `explicit` with data that has no negatives.
    """

    optional: tuple[str, ...] = ("negative",)

    def __init__(self, margin: float = 0.2, distance: Literal["cosine", "euclidean"] = "cosine", miner: str = "hard"):
        super().__init__()
        if miner not in MINERS or distance not in ("cosine", "euclidean"):
            raise UsageError(f"loss.miner={miner} loss.distance={distance}: {', '.join(MINERS)}; cosine, euclidean.")
        self.margin, self.distance, self.miner = margin, distance, miner
        if miner == "explicit":
            self.needs = ("anchor", "positive", "negative")

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.positives is not None
        n, ids, device = len(e.positives), e.batch.text_ids, e.positives.device
        candidates, text = e.positives, ids["positive"]
        rows = torch.arange(n, device=device)
        owner = rows
        if e.negatives is not None:
            candidates = torch.cat([candidates, e.negatives])
            text, owner = torch.cat([text, ids["negative"]]), torch.cat([owner, e.batch.negative_rows])
        distances = self._distances(e.anchors[0], candidates)  # (N, N + M)
        to_positive = distances[rows, rows][:, None]
        allowed = (text != ids["anchor"][:, None]) & (text != ids["positive"][:, None])
        allowed[:, :n] &= ids["anchor"][:, None] != ids["anchor"]
        if self.miner == "explicit":
            allowed[:, :n] = False
            allowed &= owner == rows[:, None]
        parts = {"negatives": allowed.sum(dim=1).float().mean()}
        hinge = F.relu(to_positive - distances + self.margin)  # (N, N + M)
        if self.miner == "explicit":
            return LossOutput(hinge[allowed].sum() / allowed.sum().clamp(min=1), parts)
        if self.miner == "all":
            active = allowed & (hinge > 0)
            return LossOutput(hinge[active].sum() / active.sum().clamp(min=1), parts)
        if self.miner == "semi_hard":
            allowed &= (distances > to_positive) & (hinge > 0)
        return LossOutput(hinge.masked_fill(~allowed, 0).amax(dim=1).mean(), parts)

    def _distances(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, D), (K, D) -> (N, K), in fp32."""
        with torch.autocast(a.device.type, enabled=False):
            if self.distance == "euclidean":
                return torch.cdist(a.float(), b.float())
            return 1 - F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T
