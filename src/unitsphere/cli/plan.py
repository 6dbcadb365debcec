"""`unitsphere plan ARGS`: what `python train.py ARGS` would run, how long it should take and in how much memory."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.cli.train import settle
from unitsphere.errors import UsageError
from unitsphere.report import costs
from unitsphere.runs import MODEL_IS_THERE, Run

USAGE = """unitsphere plan ARGUMENTS OF train.py

Prints each run that the command line would make, without running any: whether it is done already, and its time and
memory, estimated from the runs in outputs= that are done and most like it. Equal cells count once.

  unitsphere plan -m loss=simcse,infonce pooling=cls,mean seed=1,2,3
  unitsphere plan -cd sweeps -cn temperature
"""


@dataclass(frozen=True)
class Planned:
    """A run that is not made yet: its configuration with groups, what was typed, and its name in a sweep."""

    config: DictConfig
    choices: dict[str, str]
    typed: tuple[str, ...]
    name: str


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    given = dict(a.split("=", 1) for a in arguments if a.startswith(("hydra.sweep.dir=", "hydra.launcher.n_jobs=")))
    if any(a.startswith("hydra/sweeper=") for a in arguments):
        raise UsageError("a sweeper that proposes cells as it goes has no plan; only a grid has one.")
    folder = given.get("hydra.sweep.dir", "").strip("'\"")
    at_once = int(given.get("hydra.launcher.n_jobs", 1))
    own = [a for a in arguments if not a.startswith(("hydra.sweep.dir=", "hydra.launcher.", "hydra/launcher="))]
    planned: dict[str, Planned] = {}

    def plan(config: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        made = hydra_app.resolved(config)
        name = settle(made, at_once)
        choices = {group: option for group, option in hydra.runtime.choices.items() if "/" not in group}
        planned[name] = Planned(made, choices, tuple(hydra.overrides.task), name)

    away = tempfile.mkdtemp(prefix="unitsphere-plan-")
    quietly = [f"hydra.sweep.dir={away}", "~hydra.callbacks.summary", "hydra/hydra_logging=none"]
    try:
        hydra_app.run("train", plan, [*own, *quietly])
    finally:
        shutil.rmtree(away)
    show(list(planned.values()), Path(folder) if folder else None, at_once)


def show(planned: Sequence[Planned], folder: Path | None, at_once: int) -> None:
    """Print the table and the sum.

    Args:
        planned: At least one.
        folder: Of the sweep, where it is named: its cells that are done are not run again.
        at_once: Runs at a time.
    """
    from rich.table import Table

    from unitsphere.report.table import show as printed

    past = costs.past(Path(planned[0].config.outputs))
    common = set.intersection(*(set(run.typed) for run in planned)) if len(planned) > 1 else set()
    table = Table("cell", "what", "status", title=" ".join(sorted(common)), title_justify="left")
    for heading in ("minutes", "GiB", "from"):
        table.add_column(heading, justify="right" if heading != "from" else "left")
    seconds, memory, left, unknown = 0.0, 0.0, 0, 0
    for run in planned:
        there = folder / run.name / "run.json" if folder else None
        status = Run(there.parent).info["status"] if there is not None and there.exists() else "new"
        cost = costs.estimate(run.config, run.choices, past)
        told = ("-", "-", "no run is like it")
        if cost is not None:
            told = (f"{cost.seconds / 60:.1f}", "-" if cost.memory is None else f"{cost.memory:.1f}", cost.basis)
        table.add_row(run.name, " ".join(t for t in run.typed if t not in common), status, *told)
        if status not in MODEL_IS_THERE:
            left, unknown = left + 1, unknown + (cost is None)
            seconds += cost.seconds if cost is not None else 0.0
            memory = max(memory, cost.memory or 0.0) if cost is not None else memory
    printed(table)
    said = f"{left} of {len(planned)} runs to make"
    if left > unknown:
        said += f", about {max(1, round(seconds / 60))} min one after another, {memory:.1f} GiB each at most"
    if at_once > 1:
        said += f"; {at_once} at once share the machine's cores and need {at_once} times the memory"
    if unknown:
        said += f"; {unknown} cannot be estimated: no run with the same encoder is done on this machine"
    printed(said)
