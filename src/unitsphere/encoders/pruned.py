"""Attention heads and intermediate neurons cut out of a transformer, which leaves smaller matrices; and loading that.

A transformers configuration has one number of heads and of neurons for all layers, and heads that divide the width.
What departs from it stands in `config.pruned`, which transformers saves and reads as it does any attribute:

    "pruned": {"heads": [[0, 2, 3], [1]], "ffn": [100, 28]}    layer by layer: the heads left, and how many neurons

`from_pretrained` here shapes the layers by it before weights are read. transformers alone refuses such a checkpoint,
as its matrices have other shapes. Neurons of equal number in all layers need none of this: they are the
configuration's `intermediate_size`.

Code: `prune_heads` of https://github.com/huggingface/transformers, before version 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from unitsphere.encoders.layers import layer_list
from unitsphere.errors import UsageError

Part = Literal["heads", "ffn"]
Kept = Sequence[Sequence[int]]  # layer by layer, the units that stay


@dataclass(frozen=True)
class Names:
    """What an architecture calls the parts of a layer, and the number of intermediate neurons."""

    attention: str
    queries: tuple[str, str, str]  # and keys and values, parts of the attention
    output: str
    up: str
    down: str
    width: str


BERT = Names(
    "attention.self", ("query", "key", "value"), "attention.output.dense", "intermediate.dense", "output.dense",
    "intermediate_size",
)  # fmt: skip
MPNET = Names("attention.attn", ("q", "k", "v"), "attention.attn.o", BERT.up, BERT.down, BERT.width)
DISTILBERT = Names(
    "attention", ("q_lin", "k_lin", "v_lin"), "attention.out_lin", "ffn.lin1", "ffn.lin2", "hidden_dim"
)  # fmt: skip
NAMES = {
    "bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "camembert": BERT, "electra": BERT, "mpnet": MPNET,
    "distilbert": DISTILBERT,
}  # fmt: skip


@dataclass(frozen=True)
class Units:
    """The heads or the neurons of one layer: a unit is `size` rows of each matrix before it and as many columns of the
    one behind it."""

    before: tuple[Any, ...]
    behind: Any
    size: int

    @property
    def count(self) -> int:
        return int(self.behind.in_features) // self.size

    def keep(self, kept: Sequence[int]) -> None:
        """Make the matrices smaller, in place."""
        index = torch.tensor([unit * self.size + row for unit in kept for row in range(self.size)])
        for linear in self.before:
            linear.weight, linear.bias = _rows(linear.weight, index), _rows(linear.bias, index)
            linear.out_features = len(index)
        self.behind.weight = nn.Parameter(self.behind.weight.detach()[:, index].contiguous())
        self.behind.in_features = len(index)


def _rows(parameter: Tensor, index: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach()[index])


class OwnBias:
    """A forward pre-hook of MPNet's attention, whose position bias (B, H, T, T) is one for all layers."""

    def __init__(self, heads: Sequence[int]):
        self.heads = list(heads)

    def __call__(self, attention: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, mask, bias = inputs
        return hidden, mask, bias[:, self.heads]


def units(model: Any, part: Part) -> list[Units]:
    """The heads or neurons of every layer.

    Raises:
        UsageError: Of an architecture whose parts are not known here.
    """
    names = _names(model)
    found = []
    for layer in _layers(model):
        attention = layer.get_submodule(names.attention)
        if part == "heads":
            before = tuple(attention.get_submodule(name) for name in names.queries)
            found.append(Units(before, layer.get_submodule(names.output), attention.attention_head_size))
        else:
            found.append(Units((layer.get_submodule(names.up),), layer.get_submodule(names.down), 1))
    return found


def prune(model: Any, part: Part, kept: Kept) -> None:
    """Cut all heads or neurons but some out of every layer, and note it in the configuration.

    Args:
        model: A transformers model, changed in place; its vectors become those of the same model with the other units'
            outputs at zero.
        part: "heads" or "ffn".
        kept: Layer by layer the units that stay, one at least, counted among those that are there.

    Raises:
        UsageError: As `units`.
    """
    config, counts = model.config, [of_layer.count for of_layer in units(model, part)]
    _cut(model, part, kept)
    pruned = dict(getattr(config, "pruned", {}))
    if part == "heads":
        before = pruned.get("heads") or [list(range(count)) for count in counts]
        pruned["heads"] = [[names[unit] for unit in of_layer] for names, of_layer in zip(before, kept, strict=True)]
    else:
        pruned["ffn"] = [len(of_layer) for of_layer in kept]
    _note(config, pruned)


def from_pretrained(kind: Any, source: str, config: Any = None, **options: Any) -> Any:
    """`kind.from_pretrained`, for a checkpoint with cut layers too.

    Args:
        kind: One of transformers' Auto classes.
        source: A model folder or a hub id.
        config: None reads it from there.
        options: Passed on.
    """
    config = config or AutoConfig.from_pretrained(source)
    if not getattr(config, "pruned", None):
        return kind.from_pretrained(source, config=config, **options)
    whole: Any = kind._model_mapping[type(config)]

    def shaped(model: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(model, *args, **kwargs)
        for part, of_layers in config.pruned.items():
            _cut(model.base_model, part, of_layers if part == "heads" else [range(count) for count in of_layers])

    cut: Any = type(whole.__name__, (whole,), {"__init__": shaped})
    loaded = cut.from_pretrained(source, config=config, **options)
    (loaded[0] if isinstance(loaded, tuple) else loaded).__class__ = whole
    return loaded


def _cut(model: Any, part: Part, kept: Kept) -> None:
    for of_layer, layer, few in zip(units(model, part), _layers(model), kept, strict=True):
        if len(few) == of_layer.count:
            continue
        of_layer.keep(few)
        if part == "heads":
            attention = layer.get_submodule(_names(model).attention)
            attention.num_attention_heads = len(few)
            attention.all_head_size = len(few) * of_layer.size
            if "position_bias" in signature(attention.forward).parameters:
                attention.register_forward_pre_hook(OwnBias(few))


def _note(config: Any, pruned: dict[str, Any]) -> None:
    """Keep of `pruned` what the configuration cannot say otherwise."""
    neurons, heads = pruned.get("ffn"), pruned.get("heads")
    if neurons and len(set(neurons)) == 1:
        setattr(config, NAMES[config.model_type].width, pruned.pop("ffn")[0])
    if heads and all(len(of_layer) == config.num_attention_heads for of_layer in heads):
        del pruned["heads"]
    if pruned:
        config.pruned = pruned
    elif hasattr(config, "pruned"):
        del config.pruned


def _names(model: Any) -> Names:
    if model.config.model_type not in NAMES:
        raise UsageError(
            f"{type(model).__name__}: where it keeps heads and neurons is not known here; it is for {', '.join(NAMES)}."
        )
    return NAMES[model.config.model_type]


def _layers(model: Any) -> Any:
    module, name = layer_list(model)
    return getattr(module, name)
