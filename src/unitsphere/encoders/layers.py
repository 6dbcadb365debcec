"""The transformer layers of a model: where they are, and some of them instead of all.

Paper: Sajjad et al. 2020, On the effect of dropping layers, https://arxiv.org/abs/2004.03844
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from unitsphere.errors import UsageError


def layer_list(model: Any) -> tuple[Any, str]:
    """Where a model keeps its transformer layers: the module and the attribute that holds the ModuleList."""
    count = model.config.num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise UsageError(f"{type(model).__name__}: no list of {count} transformer layers was found in it.")


def keep_layers(model: Any, layers: Sequence[int]) -> None:
    """Keep these transformer layers, counted from 0, in this order; the model is changed in place.

    Raises:
        UsageError: It has no such layers.
    """
    module, name = layer_list(model)
    old, config = getattr(module, name), model.config
    count = config.num_hidden_layers
    if not layers or not all(0 <= i < count for i in layers):
        raise UsageError(f"layers={list(layers)}: the model has layers 0 to {count - 1}.")
    kept = nn.ModuleList(old[i] for i in layers)
    setattr(module, name, kept)
    for number, layer in enumerate(kept):
        parts: list[Any] = [part for part in layer.modules() if hasattr(part, "layer_idx")]
        for part in parts:
            part.layer_idx = number
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in layers]
    if getattr(config, "pruned", None):
        config.pruned = {part: [of_layers[i] for i in layers] for part, of_layers in config.pruned.items()}
