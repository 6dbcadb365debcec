"""Train a cross-encoder: it reads anchor and document together, which is slower than comparing two vectors and sees
more. It reranks what a faster search has found, filters mined negatives, and teaches (margin_mse).

Papers: Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085; Gao et al. 2021, Rethink Training of BERT Rerankers,
https://arxiv.org/abs/2101.08751 (the cross-entropy over a row's own candidates, instead of pair by pair).
Relations: sentence-transformers' cross_encoder MultipleNegativesRankingLoss has sigmoid(logit) * 10 for the logit, and
draws as many in-batch negatives; its BinaryCrossEntropyLoss is ScoredPairs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss, checked_scores
from unitsphere.types import Embeddings, LossOutput, Text


class CrossEncoderLoss(Loss):
    """What losses on pairs read together share. A text has `data.max_length` tokens at most, a pair the encoder's.

    Args:
        scorer: Called with the encoder; returns a network that joins pairs of texts and scores them, whose base is the
            encoder's.
    """

    views = 0
    embeds = False
    any_width = False

    def __init__(self, scorer: Callable[..., Any]):
        super().__init__()
        self.make = scorer

    def attach(self, embedder: Any) -> None:
        self.scorer = self.make(embedder.encoder)

    def logits(self, e: Embeddings, first: Iterable[Text], second: Iterable[Text]) -> Tensor:
        """(R) in float32."""
        assert e.passes is not None
        pairs, begins = self.scorer.join(first, second)
        return e.passes(pairs, self.scorer, begins.to(e.batch.row_ids.device)).float()


class RankedPairs(CrossEncoderLoss):
    """-mean_i log( exp(s(a_i, p_i)) / sum_{d in C_i} exp(s(a_i, d)) ), s the logit.

    C_i are p_i, the row's own negatives, and `in_batch` of the other rows' positives, drawn anew at each step. No text
    is drawn that is the row's anchor or positive, nor the positive of a row with the same anchor. Of several ranks,
    each draws from its own rows.

    Args:
        scorer: As for every such loss.
        in_batch: Other rows' positives a row, each one more pair to read.

    Raises:
        UsageError: There is nothing to rank the positive against.
    """

    needs = ("anchor", "positive")
    optional = ("negative",)

    def __init__(self, scorer: Callable[..., Any], in_batch: int = 4):
        super().__init__(scorer)
        if in_batch < 0:
            raise UsageError(f"loss.in_batch={in_batch}: 0 or more would fit.")
        self.in_batch = in_batch

    def forward(self, e: Embeddings) -> LossOutput:
        tokens = e.batch.tokens
        if self.in_batch == 0 and "negative" not in tokens:
            raise UsageError(
                "a positive alone teaches no ranking: set loss.in_batch=4, or give negatives: data=triplets"
            )
        documents = [*tokens["positive"], *tokens.get("negative", ())]
        read = self.candidates(e)  # (N, N + M)
        rows, columns = read.nonzero(as_tuple=True)
        logits = self.logits(e, [tokens["anchor"][i] for i in rows.tolist()], [documents[j] for j in columns.tolist()])
        table = logits.new_full(read.shape, float("-inf")).index_put((rows, columns), logits)
        own, count = torch.arange(len(table), device=table.device), torch.tensor(len(table), device=table.device)
        right, others = (table.argmax(dim=1) == own).sum(), (read.sum() - count).float()
        return LossOutput(
            ranks.mean(F.cross_entropy(table, own, reduction="sum"), count),
            {"accuracy": ranks.mean(right.float(), count), "negatives": ranks.mean(others, count)},
        )

    def candidates(self, e: Embeddings) -> Tensor:
        """(N, N + M): True where row i reads document j, out of this rank's N positives and M negatives."""
        ids = e.batch.text_ids
        a, p = ids["anchor"][e.mine], ids["positive"][e.mine]
        rows = torch.arange(len(a), device=a.device)
        shared = (a[:, None] == a) | (p[:, None] == p) | (a[:, None] == p)
        draw = torch.rand(shared.shape).to(a.device).masked_fill(shared, float("inf"))
        drawn = (draw.argsort(dim=1).argsort(dim=1) < self.in_batch) & ~shared
        read = [drawn | (rows == rows[:, None])]
        if "negative" in e.batch.tokens:
            n = ids["negative"][e.my_negatives]
            owner = e.batch.negative_rows[e.my_negatives] - (e.mine.start or 0)
            read.append((owner == rows[:, None]) & (n != a[:, None]) & (n != p[:, None]))
        return torch.cat(read, dim=1)


class ScoredPairs(CrossEncoderLoss):
    """mean_i BCE( sigmoid(s(a_i, p_i)), y_i ), y the row's score in [0, 1].

    Raises:
        UsageError: A score is not in [0, 1].
    """

    needs = ("anchor", "positive", "score")

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.batch.scores is not None
        scores = checked_scores(e.batch.scores[e.mine])
        logits = self.logits(e, e.batch.tokens["anchor"], e.batch.tokens["positive"])
        total = F.binary_cross_entropy_with_logits(logits, scores.float(), reduction="sum")
        return LossOutput(ranks.mean(total, torch.tensor(len(logits), device=logits.device)))
