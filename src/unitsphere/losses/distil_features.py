"""Feature distillation: chosen layers of the student imitate chosen layers of the teacher, token by token.

Papers: Romero et al. 2015, FitNets, https://arxiv.org/abs/1412.6550; Jiao et al. 2020, TinyBERT,
https://arxiv.org/abs/1909.10351 (equation 8).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput, Tokens


class Features(Loss):
    """mean over tokens and chosen layers of the mean squared difference of P_l h^student_l and h^teacher_{g(l)}.

    P_l is a linear map, trained along and not kept, where the two differ in width. Both read the same tokens, so they
    must have the same vocabulary. The student's layers come out of a pass of their own.

    Args:
        teacher: Called without arguments; returns an embedder.
        layers: Student layer l -> teacher layer g(l); 0 is the embedding layer. None: every student layer, and the
            teacher's layers at equal distances, the last with the last.

    Raises:
        UsageError: A layer that is not there, another vocabulary, or a teacher that is no torch model.
    """

    needs = ("anchor",)
    optional = ("positive", "negative")
    views = 0
    any_width = False

    def __init__(self, teacher: Callable[[], Any], layers: Mapping[int, int] | None = None):
        super().__init__()
        self.make, self.layers = teacher, layers

    def attach(self, embedder: Any) -> None:
        made = self.make()
        if not isinstance(made, nn.Module):
            raise UsageError(f"loss.teacher.path: a {type(made).__name__} shows no layers; loss=distil_mse takes it.")
        student: Any = embedder.encoder
        teacher: Any = made.encoder
        if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
            raise UsageError(
                "feature distillation needs a teacher with the student's vocabulary; use distil_relational"
            )
        depth, height = student.model.config.num_hidden_layers, teacher.model.config.num_hidden_layers
        chosen = self.layers or {i: round(i * height / depth) for i in range(1, depth + 1)}
        self.pairs = {int(low): int(high) for low, high in chosen.items()}
        wrong = [pair for pair in self.pairs.items() if not (0 <= pair[0] <= depth and 0 <= pair[1] <= height)]
        if wrong:
            raise UsageError(
                f"loss.layers: {wrong[0]} of student layers 0 to {depth} and teacher layers 0 to {height}."
            )
        self.teacher = teacher.requires_grad_(False)
        self.student = (student,)  # in a tuple: it is trained as part of the embedder
        widths = student.dim, teacher.dim
        same = widths[0] == widths[1]
        self.projections = nn.ModuleList(nn.Identity() if same else nn.Linear(*widths) for _ in self.pairs)

    def train(self, mode: bool = True) -> "Features":
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.passes is not None
        texts = [text for column in e.batch.tokens.values() for text in column]
        total, count = e.passes(texts, self.rows).sum(dim=0)
        return LossOutput(ranks.mean(total, count))

    def rows(self, tokens: Tokens) -> Tensor:
        """(B, 2): each text's sum over its tokens, mean over layers; and its number of tokens."""
        made = self.student[0](tokens, layers=True).layers
        with torch.no_grad():
            wanted = self.teacher(tokens, layers=True).layers
        differences = [
            (project(made[low]).float() - wanted[high].float()).square().mean(dim=-1)  # (B, T)
            for project, (low, high) in zip(self.projections, self.pairs.items(), strict=True)
        ]
        mask = tokens.mask.float()
        return torch.stack([(torch.stack(differences).mean(dim=0) * mask).sum(dim=1), mask.sum(dim=1)], dim=1)
