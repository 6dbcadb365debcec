"""Sweeps that survive: a cell is a folder named by its configuration, so a cell that is done is not run again, one that
was cut goes on, and one that fails stops no other.

`unitsphere sweep FOLDER` shows how far a sweep is.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from unitsphere.cli import hydra_app
from unitsphere.errors import UsageError
from unitsphere.runs import Run

USAGE = """unitsphere sweep FOLDER [watch=true]

Shows the cells of a sweep that are done, running, failed, cut or not yet begun, and when the rest should be done.
Cells that are not done are run by

  python train.py resume=FOLDER
"""


@dataclass(frozen=True)
class State:
    """How far a sweep is.

    Attributes:
        cells: The runs that have begun.
        statuses: Theirs.
        total: All cells; None where the sweeper makes them up as it goes.
        seconds_left: For the cells that run or have not begun, estimated from those that are done; None before one is.
    """

    cells: tuple[Run, ...]
    statuses: tuple[str, ...]
    total: int | None
    seconds_left: float | None

    def count(self, status: str) -> int:
        return self.statuses.count(status)

    def __str__(self) -> str:
        parts = [f"{self.count('done')} of {self.total or len(self.cells)} cells done"]
        for status in ("running", "trained", "pruned", "failed", "killed", "interrupted"):
            if self.count(status):
                parts.append(f"{self.count(status)} {status}")
        if self.seconds_left:
            end = time.strftime("%H:%M", time.localtime(time.time() + self.seconds_left))
            parts.append(f"the rest in about {max(1, round(self.seconds_left / 60))} min, at {end}")
        return ", ".join(parts)


def state(folder: Path) -> State:
    """Read a sweep's folder."""
    cells = tuple(Run(found.parent) for found in sorted(folder.glob("*/run.json")))
    infos = [cell.info for cell in cells]
    statuses = tuple(info["status"] for info in infos)
    took = [info["wall_seconds"] for info in infos if info["status"] == "done"]
    total = _total(folder / "multirun.yaml")
    if total is not None:
        total -= sum(len(info.get("equal", ())) for info in infos)
    running = statuses.count("running")
    left = (total or len(cells)) - len(cells) + running
    at_once = max(1, running)
    return State(cells, statuses, total, left * sum(took) / len(took) / at_once if took and left else None)


def _total(file: Path) -> int | None:
    """The number of cells that Hydra's own sweeper makes of what was typed and of the sweep's file; None for others."""
    if not file.exists():
        return None
    hydra = _plain(file)["hydra"]
    if not hydra["sweeper"]["_target_"].endswith("BasicSweeper"):
        return None
    given = [f"{key}={value}" for key, value in (hydra["sweeper"]["params"] or {}).items()]
    return len(cells([*given, *hydra["overrides"]["task"]]))


def cells(typed: Sequence[str]) -> set[tuple[str, ...]]:
    """The overrides, sorted, of each cell that Hydra's own sweeper makes of a command line.

    Raises:
        UsageError: It is not in Hydra's grammar.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (split,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(typed)), None)
    except HydraException as error:
        raise UsageError(f"{' '.join(typed)}: {str(error).splitlines()[0]}") from None
    return {tuple(sorted(cell)) for cell in split}


def typed(folder: Path) -> list[str]:
    """The overrides of a cell."""
    overrides: list[str] = _plain(folder / "overrides.yaml")
    return overrides


def again(folder: Path) -> list[str]:
    """The command line that runs what is missing in a sweep: as it was typed, into the same folder."""
    hydra = _plain(folder / "multirun.yaml")["hydra"]
    source = next((s["path"] for s in hydra["runtime"]["config_sources"] if s["provider"] == "command-line"), None)
    given_here = ("hydra.sweep.dir=", "hydra.mode=")
    own = [t for t in hydra["overrides"]["hydra"] if not t.startswith(given_here)]
    named = ["-cn", hydra["job"]["config_name"]] + (["-cd", source] if source else [])
    return [*named, "-m", hydra_app.quoted(f"hydra.sweep.dir={folder}"), *own, *hydra["overrides"]["task"]]


def _plain(file: Path) -> Any:
    """What Hydra has saved, with interpolations as they were typed."""
    return yaml.safe_load(file.read_text(encoding="utf-8"))


class Summary(Callback):
    """Says at the end of a sweep what became of its cells; exit status 1 where one is not done."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from unitsphere.report.table import show

        folder = Path(config.hydra.sweep.dir)
        now = state(folder)
        show(f"{folder}: {now}")
        for cell, status in zip(now.cells, now.statuses, strict=True):
            if status not in ("done", "pruned"):
                show(f"  {cell.folder.name} {status}: {' '.join(typed(cell.folder))}: {cell.info.get('error')}")
        if now.cells:
            from unitsphere.cli import report

            show(str(report.of_sweep(folder)))
        show(f"unitsphere table {folder}")
        if now.count("done") + now.count("pruned") < (now.total or len(now.cells)):
            show(f"python train.py resume={folder}   # runs the cells that are not done")
            sys.exit(1)


def main(arguments: Sequence[str]) -> None:
    """Entry point of `unitsphere sweep`."""
    if list(arguments[1:]) not in ([], ["watch=true"]):
        raise UsageError(f"sweep: {' '.join(arguments[1:])} is not understood; FOLDER and watch=true are.")
    from rich.live import Live

    folder = Path(arguments[0])
    if not (folder / "multirun.yaml").exists():
        raise UsageError(f"{folder} is not a sweep's folder: it should hold multirun.yaml.")
    with Live(view(folder), refresh_per_second=1) as live:
        while len(arguments) > 1 and state(folder).count("running"):
            time.sleep(2)
            live.update(view(folder))


def view(folder: Path) -> Any:
    """A table of the cells."""
    from rich.table import Table

    now = state(folder)
    table = Table("cell", "status", "what", title=str(now), title_justify="left")
    table.add_column("seconds", justify="right")
    for cell, status in zip(now.cells, now.statuses, strict=True):
        table.add_row(cell.folder.name, status, " ".join(typed(cell.folder)), str(cell.info.get("wall_seconds", "")))
    return table
