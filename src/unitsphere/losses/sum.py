"""A weighted sum of losses: DiffCSE is SimCSE plus replaced-token detection, AnglE its angle term plus CoSENT."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput


class Sum(Loss):
    """sum_k w_k L_k.

    Args:
        terms: Name -> loss. The name is the part's in the curves.
        weights: Name -> w; 1 where it is not given.

    Raises:
        UsageError: A weight names no term.
    """

    def __init__(self, terms: Mapping[str, Loss], weights: Mapping[str, float] | None = None):
        super().__init__()
        self.terms: Any = nn.ModuleDict(terms)
        self.weights = dict.fromkeys(terms, 1.0) | dict(weights or {})
        if self.weights.keys() != terms.keys():
            raise UsageError(
                f"loss.weights: no term {sorted(self.weights.keys() - terms.keys())[0]!r}; {', '.join(terms)}"
            )
        self.needs = tuple(dict.fromkeys(column for term in terms.values() for column in term.needs))
        self.optional = tuple(dict.fromkeys(column for term in terms.values() for column in term.optional))
        self.any_width = all(term.any_width for term in terms.values())
        self.views = max(term.views for term in terms.values())
        self.embeds = all(term.embeds for term in terms.values())

    def attach(self, embedder: Any) -> None:
        for term in self.terms.values():
            term.attach(embedder)

    def forward(self, e: Embeddings) -> LossOutput:
        parts = {}
        for name, term in self.terms.items():
            out = term(replace(e, anchors=e.anchors[: term.views]))
            parts[name] = out.total
            parts |= {f"{name}/{part}": value for part, value in out.parts.items()}
        return LossOutput(sum(w * parts[name] for name, w in self.weights.items()), parts)
