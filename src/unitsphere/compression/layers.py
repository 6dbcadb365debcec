"""Fewer transformer layers.

Papers: Sajjad et al. 2020, On the effect of dropping layers, https://arxiv.org/abs/2004.03844 (which ones); Sanh et al.
2019, DistilBERT, https://arxiv.org/abs/1910.01108 (every second one, then distillation).
Relations: `encoder.layers=[…]` cuts the encoder of a training run; sentence-transformers' example
model_distillation_layer_reduction does the same.
"""

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal

import numpy as np

from unitsphere.compression.step import Context, Step, trainable
from unitsphere.embedder import Embedder
from unitsphere.encoders.layers import keep_layers
from unitsphere.errors import UsageError
from unitsphere.model import Model

# (layers there are, layers to keep, seed) -> their numbers
CHOICES: dict[str, Callable[[int, int, int], list[int]]] = {
    "spread": lambda total, count, seed: [round(i) for i in np.linspace(0, total - 1, count)],
    "first": lambda total, count, seed: list(range(count)),
    "last": lambda total, count, seed: list(range(total - count, total)),
    "random": lambda total, count, seed: sorted(np.random.default_rng(seed).permutation(total)[:count].tolist()),
}


class PruneLayers(Step):
    """Keep `count` of a model's L transformer layers, in their order.

    Args:
        count: In 1 to L.
        choose: "spread" takes layers round(i (L - 1) / (count - 1)), the first and the last among them (of one, the
            first); "first" and "last" the lowest and highest; "random" is the control; "search" drops one layer after
            the other, each time the one without which the model is best: by the primary dev metric, or, where nothing
            scores dev, by the mean squared difference of its vectors to those of the whole model.
        layers: The numbers of the layers instead, counted from 0; `count` and `choose` are not read then.
        texts: How many training texts the search compares vectors of, where it does that.
        recovery: Overrides of train.yaml for a run that trains what is left; None for none.

    Raises:
        UsageError: There is no such choice.
    """

    stage = "before"

    def __init__(
        self,
        count: int = 3,
        choose: Literal["spread", "first", "last", "random", "search"] = "spread",
        layers: Sequence[int] | None = None,
        texts: int = 256,
        recovery: Sequence[str] | None = None,
    ):
        if choose not in (*CHOICES, "search"):
            raise UsageError(f"choose={choose}: {', '.join(CHOICES)} or search would fit.")
        self.count, self.choose, self.layers, self.texts = count, choose, layers, texts
        self.recovery = tuple(recovery or ())

    def apply(self, model: Model, context: Context) -> Model:
        embedder = trainable(model, "prune_layers")
        keep_layers(embedder.encoder.model, self.layers or self._chosen(embedder, context))
        return embedder

    def _chosen(self, embedder: Embedder, context: Context) -> list[int]:
        total = embedder.encoder.model.config.num_hidden_layers
        if not 1 <= self.count <= total:
            raise UsageError(f"prune_layers.count={self.count}: the model has {total} layers.")
        if self.choose == "search":
            return self._searched(embedder, context)
        return CHOICES[self.choose](total, self.count, context.seed)

    def _searched(self, embedder: Embedder, context: Context) -> list[int]:
        whole = embedder.encoder.model
        kept = list(range(whole.config.num_hidden_layers))
        quality = context.scorer() or self._likeness(embedder, context)
        while len(kept) > self.count:
            without = []
            for layer in kept:
                embedder.encoder.model = copy.deepcopy(whole)
                keep_layers(embedder.encoder.model, [other for other in kept if other != layer])
                without.append(quality(embedder))
            del kept[int(np.argmax(without))]
        embedder.encoder.model = whole
        return kept

    def _likeness(self, embedder: Embedder, context: Context) -> Callable[[Model], float]:
        """A model -> minus the mean squared difference of its vectors of texts to those that `embedder` has now."""
        pairs = list(islice(context.pairs, -(-self.texts // 2)))
        if not pairs:
            raise UsageError("prune_layers.choose=search: nothing scores dev, and there are no training texts either.")

        def vectors(model: Model) -> np.ndarray:
            sides = zip(("query", "document"), zip(*pairs, strict=True), strict=True)
            return np.concatenate([model.embed(texts, role, context.max_length) for role, texts in sides])

        before = vectors(embedder)
        return lambda model: -float(np.square(vectors(model) - before).mean())
