"""The only call to Hydra's `instantiate`."""

import inspect
from collections.abc import Mapping
from typing import Any, get_args

from hydra.errors import InstantiationException
from hydra.utils import instantiate

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


def build_evaluators(nodes: Mapping[str, Any], split: str, own: Any) -> list[Evaluator]:
    """The evaluators of a split.

    Args:
        nodes: The config group `eval`.
        split: "dev" or "test".
        own: The data's own queries of that split, or None.
    """
    return [build(node, split=split, own=own) for node in nodes.values()]
