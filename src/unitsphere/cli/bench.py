"""`unitsphere bench`: how fast something is here, beside a peer and beside other ways of doing it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unitsphere import paths
from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError
from unitsphere.runs import Run, provenance, stamped, write

OURS = "unitsphere"
VARIANT = re.compile(r"([+~]*)variant\.(\w+)\.(.+)")


@dataclass(frozen=True)
class Contender:
    """What takes a turn: the dotted name of a function, and the resolved configuration that it is called with."""

    call: str
    config: DictConfig


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    given = [f"bench={a}" if n == 0 and re.fullmatch(r"\w+", a) else a for n, a in enumerate(arguments)]
    flags, overrides = hydra_app.divided(given)
    others = [override for override in overrides if not is_own(override)]
    hydra_app.run("bench", partial(job, others=others), [*flags, *(o for o in overrides if is_own(o))])


def is_own(argument: str) -> bool:
    """Whether it is a key of bench.yaml, and not one of what is measured."""
    keys = OmegaConf.load(paths.conf() / "bench.yaml")
    return re.split(r"[=.@]", argument.lstrip("+~"))[0] in {"bench", "hydra", *map(str, keys)} - {"defaults"}


def job(config: DictConfig, others: Sequence[str]) -> None:
    """Let the contenders take turns, print and save."""
    from hydra.core.hydra_config import HydraConfig

    from unitsphere.process import cpu_threads
    from unitsphere.report import bench
    from unitsphere.report.table import show

    what = HydraConfig.get().runtime.choices["bench"]
    config = hydra_app.resolved(config)
    if config.threads == "auto":
        config.threads = cpu_threads()
    if config.rounds < 1:
        raise UsageError(f"rounds={config.rounds}: 1 or more would fit.")
    contenders = contestants(config, others)
    run = Run.create(Path(config.outputs) / "bench" / what, stamped("bench"))
    write(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"settings": config, **asked(contenders)})))
    write(run.folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(others))))
    run.note(**provenance(), status="running", choices={}, threads=config.threads, what=what)
    with run.lock():
        try:
            turns = rounds(config, contenders, run)
        except BaseException as error:
            run.note(status="failed", error=f"{type(error).__name__}: {error}")
            raise
        run.note(status="done")
    baseline = config.peer or OURS
    table = bench.summary(turns, baseline, config.bench.primary)
    bench.save(run, table)
    show(bench.terminal(table, what))
    show(str(run.folder))


def contestants(config: DictConfig, others: Sequence[str]) -> dict[str, Contender]:
    """Ours, each variant of it, and the peer.

    Raises:
        UsageError: No such peer, or overrides that do not fit what is measured.
    """
    variants: dict[str, list[str]] = {}
    for prefix, name, override in (m.groups() for m in map(VARIANT.fullmatch, others) if m):
        variants.setdefault(name, []).append(prefix + override)
    given = [o for o in others if not VARIANT.fullmatch(o)]
    calls = dict(config.bench.peers)
    if config.peer is not None and config.peer not in calls:
        raise UsageError(f"peer={config.peer}: {' or '.join(calls) or 'none'} would fit.")
    mine = composed(config, given)
    found = {OURS: Contender(config.bench.call, mine)}
    for name, more in variants.items():
        found[name] = Contender(config.bench.call, composed(config, [*given, *more]))
    if config.peer is not None:
        found[config.peer] = Contender(calls[config.peer], mine)
    return found


def composed(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of what is measured."""
    import hydra
    from hydra.errors import HydraException

    from unitsphere.training.trainer import make_concrete

    fixed = [*config.bench.fixed, f"{config.bench.threads}={config.threads}"]
    try:
        made = hydra.compose(config.bench.root, [*fixed, *overrides])
    except HydraException as error:
        raise UsageError(" ".join(str(error).split())) from error
    made = hydra_app.resolved(made)
    if "trainer" in made:
        make_concrete(made)
    hydra_app.make_absolute(made)
    return made


def asked(contenders: Mapping[str, Contender]) -> dict[str, Any]:
    """What is saved of them."""
    return {name: OmegaConf.to_container(contender.config) for name, contender in contenders.items()}


def rounds(config: DictConfig, contenders: Mapping[str, Contender], run: Run) -> Any:
    """One row a turn, written as they come: round, contender, what was measured, and the machine's peak.

    The first contender changes from round to round, so that none has always the place after another.
    """
    import pandas as pd

    from unitsphere.bench.child import measured
    from unitsphere.report.table import show

    rows: list[dict[str, Any]] = []
    names = list(contenders)
    for number in range(config.rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            contender = contenders[name]
            gpus = OmegaConf.select(contender.config, "trainer.accelerator") != "cpu"
            found = measured(contender.call, contender.config, config.threads, config.bench.options, gpus)
            if "dtype" in found:
                of = {"dtype": found["dtype"]}
                peak = measured("unitsphere.bench.peak.measure", config, config.threads, of, gpus)
                found["peak FLOP/s"] = peak["FLOP/s"]
            rows.append({"round": number, "contender": name, **found})
            write(run.folder / "rounds.csv", pd.DataFrame(rows).to_csv(index=False))
            show(f"round {number + 1}, {name}: {found[config.bench.primary]:,.1f} {config.bench.primary}")
    return pd.DataFrame(rows)
