"""The only calls to Hydra's `instantiate`."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from unitsphere.errors import UsageError
from unitsphere.types import Evaluator

NUMBERS = {int, float, bool, type(None)}  # what annotations of numbers are made of


def build(node: Mapping[str, Any], **kwargs: Any) -> Any:
    """Call what a config node's `_target_` names, with the node's keys and `kwargs`.

    Lists and mappings of the node arrive as plain Python objects. `kwargs` are passed by us, not by Hydra, which would
    turn dataclasses among them into configs.

    Raises:
        UsageError: The target is not there, or the keys do not fit its signature.
    """
    try:
        call = instantiate(node, _convert_="all", _partial_=True)
    except InstantiationException as error:
        raise UsageError(" ".join(str(error).split("\n")[0].split())) from error
    takes = inspect.signature(call.func)
    try:
        takes.bind(*call.args, **{**call.keywords, **kwargs})
    except TypeError as error:
        known = ", ".join(name for name in takes.parameters if name not in kwargs)
        raise UsageError(f"{node['_target_']}: {error}; it takes {known or 'nothing'}.") from error
    for name, value in call.keywords.items():
        kind = takes.parameters[name].annotation if name in takes.parameters else Any
        if isinstance(value, str) and {*(get_args(kind) or (kind,))} <= NUMBERS:
            raise UsageError(f"{node['_target_']}: {name}={value}: a number would fit.")
    return call(**kwargs)


def check_targets(node: Any, kinds: tuple[type, ...], file: Path, key: str = "") -> None:
    """Refuse to build what a file says that came with a model, and that anybody may have written, where it would call
    more than a model is made of.

    Args:
        node: Of that file, as plain Python objects.
        kinds: The classes that its targets may name, at any depth, and those derived from them; beside the layers of
            torch.nn.
        file: Where the node stands.
        key: Of the node in it; "" is the whole file.

    Raises:
        UsageError: A target is something else, or a value is an interpolation, out of which a target could come.
    """
    for place, value in _values(node, key):
        if isinstance(value, str) and "${" in value:
            raise UsageError(f"{file}: {place}={value}: a model's file has no interpolations.")
        if place.rpartition(".")[2] == "_target_" and not _is_part(value, kinds):
            names = ", ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
            raise UsageError(
                f"{file}: {place}={value}: is not built, as it is no part of a model. {names}, classes derived from "
                "them, and layers of torch.nn would fit."
            )


def _values(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Everything in a node that is no mapping or list, with the key that leads to it; a target whatever it is."""
    inside = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else None
    if inside is None or key.rpartition(".")[2] == "_target_":
        yield key, node
        return
    for name, value in inside:
        yield from _values(value, f"{key}.{name}" if key else str(name))


def _is_part(target: Any, kinds: tuple[type, ...]) -> bool:
    if not isinstance(target, str):
        return False
    try:
        found = instantiate({"_target_": target}, _partial_=True).func  # as `build` would find it; not called
    except InstantiationException:
        return False
    layer = isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("torch.nn.")
    return layer or (isinstance(found, type) and issubclass(found, kinds))


def build_evaluators(nodes: Mapping[str, Any], split: str, own: Any) -> list[Evaluator]:
    """The evaluators of a split.

    Args:
        nodes: The config group `eval`.
        split: "dev" or "test".
        own: The data's own queries of that split, or None.
    """
    return [build(node, split=split, own=own) for node in nodes.values()]
