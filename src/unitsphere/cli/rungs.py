"""The rungs of a ladder: chains of steps, composed from what would be typed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from unitsphere.cli import hydra_app
from unitsphere.cli.chain import group
from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.compression.step import Step

RECOVERY = "recovery."  # an override that begins so goes to the runs that steps ask for, without it


@dataclass(frozen=True)
class Chain:
    """The steps of a rung, in order: name -> configuration node, and what is added to the overrides of their training.

    Chains that begin alike share what they begin with.
    """

    nodes: Mapping[str, Any]
    recovery: Sequence[str] = ()

    @cached_property
    def steps(self) -> dict[str, "Step"]:
        """Built."""
        from unitsphere.build import build

        return {name: build(node) for name, node in self.nodes.items()}

    def key(self, count: int) -> str:
        """Equal for chains whose first `count` steps are equal."""
        nodes = [OmegaConf.to_container(node) for node in self.nodes.values()]
        return json.dumps([nodes[:count], list(self.recovery)])


def divided(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those for recovery, without the prefix, and the others."""
    own = [o for o in overrides if o.lstrip("+~").startswith(RECOVERY)]
    return [o.replace(RECOVERY, "", 1) for o in own], [o for o in overrides if o not in own]


def prefixed(override: str) -> str:
    """As it was typed."""
    bare = override.lstrip("+~")
    return override[: len(override) - len(bare)] + RECOVERY + bare


def chains(config: DictConfig, recovery: Sequence[str]) -> dict[str, Chain]:
    """Rung -> its chain: those of the ladder, or compression=[a,b] as the rungs a and a+b.

    Raises:
        UsageError: Neither or both are given, steps that cannot follow each other, or settings for trainings that there
            are not.
    """
    from unitsphere.compression.step import check_chain

    if bool(config.compression) == bool(config.get("ladder")):
        raise UsageError("give one of compression=… (steps, in order) and ladder=… (many such chains)")
    if config.get("ladder"):
        found = {rung: compose(rung, overrides, recovery) for rung, overrides in config.ladder.items()}
        if bad := [rung for rung in found if "/" in rung or rung == "original"]:
            raise UsageError(f"ladder: {bad[0]!r} is no name for a rung: it is a folder's name, and not `original`")
    else:
        nodes = list(config.compression.items())
        starts = [dict(nodes[: n + 1]) for n in range(len(nodes))]
        found = {"+".join(map(str, start)): Chain(start, recovery) for start in starts}
    for chain in found.values():
        check_chain(chain.steps)
    if recovery and not any(step.recovery for chain in found.values() for step in chain.steps.values()):
        raise UsageError(f"{prefixed(recovery[0])}: none of these steps trains; recover after them would, or qat")
    return found


def compose(rung: str, overrides: Sequence[str], recovery: Sequence[str]) -> Chain:
    """The chain of a rung, from what would be typed.

    Raises:
        UsageError: It names the rung.
    """
    import hydra
    from hydra.errors import HydraException

    own, others = divided(overrides)
    if strange := [o for o in others if group(o) not in ("compression", "calibration")]:
        raise UsageError(
            f"ladder: {rung}: {strange[0]} is for all rungs, on the command line; compression…, calibration@… and "
            f"{RECOVERY}… are a rung's own"
        )
    try:
        composed = hydra.compose("compress", ["model=none", *others])
    except HydraException as error:
        raise UsageError(f"ladder: {rung}: {' '.join(str(error).split())}") from error
    if not composed.compression:
        raise UsageError(f"ladder: {rung}: {list(overrides)} names no compression=…")
    nodes = {str(name): hydra_app.resolved(node) for name, node in composed.compression.items()}
    return Chain(nodes, [*recovery, *own])


def plain(rungs: Mapping[str, Chain]) -> dict[str, Any]:
    """As plain values, which `from_plain` turns into chains again."""
    return {
        rung: {
            "steps": {name: OmegaConf.to_container(node) for name, node in chain.nodes.items()},
            "recovery": list(chain.recovery),
        }
        for rung, chain in rungs.items()
    }


def from_plain(rungs: Mapping[str, Any]) -> dict[str, Chain]:
    """What `plain` gave."""
    return {
        rung: Chain({name: OmegaConf.create(node) for name, node in saved["steps"].items()}, saved["recovery"])
        for rung, saved in rungs.items()
    }
