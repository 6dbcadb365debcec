"""Fewer attention heads, fewer intermediate neurons: smaller matrices, which any hardware multiplies faster.

Papers: Michel et al. 2019, https://arxiv.org/abs/1905.10650 (heads); McCarley et al. 2019, Structured pruning of a
BERT-based question answering model, https://arxiv.org/abs/1910.06360 (neurons).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from unitsphere.compression.importance import best, gradient, magnitude, random
from unitsphere.compression.step import Context, Step, trainable
from unitsphere.embedder import Embedder
from unitsphere.encoders.pruned import Part, Units, prune, units
from unitsphere.errors import UsageError
from unitsphere.model import Model


class PruneUnits(Step):
    """Keep the units that matter most; the vectors become those of the model with the other units' outputs at zero.

    Args:
        keep: The share of units that stays, in (0, 1].
        importance: "gradient" (see `importance.gradient`), "magnitude" of their weights, or "random", the control.
        per_layer: That share of every layer; else the best of all layers, each layer's scores over their L2 norm.
        least: How many stay of every layer in any case.
        pairs, batch_size, temperature: Of the gradient.
        recovery: Overrides of train.yaml for a run that trains what is left; None for none.

    Raises:
        UsageError: A setting is out of range.
    """

    stage = "before"
    part: ClassVar[Part]

    def __init__(
        self,
        keep: float = 0.5,
        importance: Literal["gradient", "magnitude", "random"] = "gradient",
        per_layer: bool = True,
        least: int = 1,
        pairs: int = 512,
        batch_size: int = 32,
        temperature: float = 0.05,
        recovery: Sequence[str] | None = None,
    ):
        self.name = f"prune_{self.part}"
        self.ways: dict[str, Callable[[Embedder, list[Units], Context], list[Tensor]]] = {
            "gradient": partial(gradient, pairs=pairs, batch_size=batch_size, temperature=temperature),
            "magnitude": lambda embedder, layers, context: magnitude(layers),
            "random": lambda embedder, layers, context: random(layers, context.seed),
        }
        if importance not in self.ways:
            raise UsageError(f"{self.name}.importance={importance}: {', '.join(self.ways)} would fit.")
        if not 0 < keep <= 1 or least < 1:
            raise UsageError(f"{self.name}: keep={keep} and least={least}; a share in (0, 1] and 1 or more would fit.")
        self.keep, self.importance, self.per_layer, self.least = keep, importance, per_layer, least
        self.recovery = tuple(recovery or ())

    def apply(self, model: Model, context: Context) -> Model:
        embedder = trainable(model, self.name)
        layers = units(embedder.encoder.model, self.part)
        scores = self.ways[self.importance](embedder, layers, context)
        prune(embedder.encoder.model, self.part, best(scores, self.keep, self.per_layer, self.least))
        return embedder


class PruneHeads(PruneUnits):
    """As `PruneUnits`: attention heads. transformers cannot load what comes of it, and we can (encoders.pruned)."""

    part = "heads"


class PruneFFN(PruneUnits):
    """As `PruneUnits`: neurons between the two matrices of the feed-forward part. With `per_layer` transformers and
    sentence-transformers load what comes of it, too."""

    part = "ffn"
