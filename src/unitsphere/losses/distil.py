"""Distillation from a teacher's vectors: the vectors themselves (response), or how they lie to each other (relational).

Papers: Hinton et al. 2015, https://arxiv.org/abs/1503.02531; Reimers & Gurevych 2020, multilingual distillation,
https://arxiv.org/abs/2004.09813; Park et al. 2019, relational knowledge distillation, https://arxiv.org/abs/1904.05068;
Fang et al. 2021, SEED, https://arxiv.org/abs/2101.04731 (similarity distributions).
Relations: sentence-transformers' MSELoss is Response with measure=mse.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss, checked_temperature, through
from unitsphere.losses.teacher import embedding_teacher
from unitsphere.types import Embeddings, LossOutput

ROLES = {"anchor": "query", "positive": "document", "negative": "document"}


class Distillation(Loss):
    """What the losses with an embedding teacher share: the student's vectors of every column, and the teacher's.

    Args:
        teacher: Called without arguments; returns an embedder.
        max_length: Tokens the teacher reads of a text; None is its limit.
    """

    needs: tuple[str, ...] = ("anchor",)
    optional: tuple[str, ...] = ("positive", "negative")

    def __init__(self, teacher: Callable[[], Any], max_length: int | None = None):
        super().__init__()
        self.make, self.max_length = teacher, max_length

    def attach(self, embedder: Any) -> None:
        model = self.make()
        self.teacher_normalizes: bool = model.normalize
        self.width: int = model.dim
        self.teacher = embedding_teacher(model, self.max_length)

    def mine(self, e: Embeddings) -> dict[str, Tensor]:
        """Column -> this rank's student vectors (r, D)."""
        found = {"anchor": e.anchors[0][e.mine]}
        if e.positives is not None:
            found["positive"] = e.positives[e.mine]
        if e.negatives is not None and "negative" in e.batch.texts:  # a queue has vectors alone
            found["negative"] = e.negatives[e.my_negatives]
        return found

    def taught(self, e: Embeddings, column: str) -> Tensor:
        """The teacher's vectors (r, D_teacher) of this rank's texts of a column, under their rows' instructions."""
        texts, role = e.batch.texts[column], ROLES[column]
        own = e.batch.instructions.get(column) or [None] * len(texts)
        questions = [
            (role, text) if given is None else (role, text, given) for text, given in zip(texts, own, strict=True)
        ]
        return self.teacher(questions, e.batch.row_ids.device)


class Response(Distillation):
    """mean over texts x of d(P s(x), t(x)): d is the mean squared difference of the numbers, or 1 - cosine.

    P is a linear map, trained along and not kept, where student and teacher differ in width; else the identity.

    Args:
        teacher, max_length: As for `Distillation`.
        measure: "mse" or "cosine".
        parallel: Anchors and positives are translations: the teacher reads the anchor only, and its vector is the
            target of both.

    Raises:
        UsageError: No such measure; or, with equal widths and "mse", only one of the two is normalised.
    """

    any_width = False

    def __init__(
        self,
        teacher: Callable[[], Any],
        max_length: int | None = None,
        measure: Literal["mse", "cosine"] = "mse",
        parallel: bool = False,
    ):
        super().__init__(teacher, max_length)
        if measure not in ("mse", "cosine"):
            raise UsageError(f"loss.measure={measure}: mse or cosine would fit.")
        self.measure, self.parallel = measure, parallel
        if parallel:
            self.needs, self.optional = ("anchor", "positive"), ()

    def attach(self, embedder: Any) -> None:
        super().attach(embedder)
        same = self.width == embedder.dim
        if same and self.measure == "mse" and embedder.normalize != self.teacher_normalizes:
            raise UsageError(
                f"only one of teacher and student has normalised vectors, so they cannot agree; "
                f"set embedder.normalize={str(self.teacher_normalizes).lower()}"
            )
        self.projection: nn.Module = nn.Identity() if same else nn.Linear(embedder.dim, self.width, bias=False)

    def forward(self, e: Embeddings) -> LossOutput:
        student = self.mine(e)
        target = torch.cat([self.taught(e, "anchor" if self.parallel else column) for column in student])
        made = through(self.projection, torch.cat(list(student.values()))).float()
        if self.measure == "mse":
            losses = (made - target).square().mean(dim=1)
        else:
            losses = 1 - F.cosine_similarity(made, target)
        return LossOutput(ranks.mean(losses.sum(), losses.new_tensor(len(losses))))


class Relational(Distillation):
    """mean_i KL( softmax_j(cos(t_i, t_j) / tau_t) || softmax_j(cos(s_i, s_j) / tau_s) ).

    i are the anchors, j the positives and negatives of the batch, or, where it has none, the other anchors.

    Args:
        teacher, max_length: As for `Distillation`.
        temperature: tau_s.
        teacher_temperature: tau_t.
    """

    def __init__(
        self,
        teacher: Callable[[], Any],
        max_length: int | None = None,
        temperature: float = 0.05,
        teacher_temperature: float = 0.05,
    ):
        super().__init__(teacher, max_length)
        self.temperature = checked_temperature(temperature)
        self.teacher_temperature = checked_temperature(teacher_temperature)

    def forward(self, e: Embeddings) -> LossOutput:
        negatives = e.negatives if e.negatives is None else e.negatives[e.batch.negative_rows >= 0]  # not a queue's
        others = {c: z for c, z in (("positive", e.positives), ("negative", negatives)) if z is not None and len(z)}
        anchors = ranks.everyone(self.taught(e, "anchor"))
        target = torch.cat([ranks.everyone(self.taught(e, c)) for c in others]) if others else anchors
        made = torch.cat(list(others.values())) if others else e.anchors[0]
        p = similarities(anchors, target, self.teacher_temperature)
        q = similarities(e.anchors[0], made, self.temperature)
        if not others:
            own = torch.eye(len(p), dtype=torch.bool, device=p.device)
            p, q = p.masked_fill(own, -1e4), q.masked_fill(own, -1e4)
        return LossOutput(F.kl_div(q.log_softmax(dim=1), p.log_softmax(dim=1), reduction="batchmean", log_target=True))


def similarities(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """cosine / tau, (N, D), (K, D) -> (N, K), in fp32."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T / temperature
