"""`unitsphere study run|check FOLDER`: a question, the runs that answer it, and a table that follows from them."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unitsphere.cli import hydra_app, sweep, table
from unitsphere.errors import UsageError

if TYPE_CHECKING:
    from unitsphere.report.records import Record

USAGE = """unitsphere study run FOLDER [outputs=outputs] [hydra.…=…]
unitsphere study check FOLDER [outputs=outputs]

A study is a folder with a study.yaml:

  runs:                       # each a sweep, written as the arguments of `python train.py -m`
    main: loss=simcse,infonce pooling=cls,mean seed=1,2,3 trainer.threads=1
  table:                      # as for `unitsphere table`
    rows: loss
    cols: pooling
    metric: docstrings/mrr@10

run     runs the cells that are missing, in outputs/studies/<study>/<sweep>/, and writes runs.csv (every run with its
        settings, data, versions and metrics) and table.md, .tex, .csv, .html beside study.yaml.
check   whether study.yaml, runs.csv and table.md still belong together, and, where the run folders are here, whether
        runs.csv says what they say. Exit status 0: they do; 1: they do not.

  unitsphere study run experiments/pooling_by_loss hydra/launcher=joblib hydra.launcher.n_jobs=2
  unitsphere table experiments/pooling_by_loss/study.yaml metric=docstrings/recall@1
"""


@dataclass(frozen=True)
class Study:
    """What a study.yaml says.

    Attributes:
        folder: Where it is.
        sweeps: Name -> arguments of `train -m`.
        table: Options of `unitsphere table`.
    """

    folder: Path
    sweeps: Mapping[str, list[str]]
    table: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """Read a study's folder.

        Raises:
            UsageError: It has no study.yaml, or one that says something else.
        """
        file = folder / "study.yaml"
        if not file.exists():
            raise UsageError(f"{folder} is no study: it should hold study.yaml.")
        try:
            said: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UsageError(f"{file}: {' '.join(str(error).split())}") from None
        if not isinstance(said, dict) or said.keys() != {"runs", "table"}:
            raise UsageError(f"{file}: it should have the keys runs and table, each with something below it.")
        for key, node in said.items():
            if not isinstance(node, dict) or not node:
                raise UsageError(f"{file}: {key} should be a list of `name: value`.")
        unknown = said["table"].keys() - set(table.OPTIONS)
        if unknown:
            raise UsageError(f"{file}: table has no option {sorted(unknown)[0]!r}; {', '.join(table.OPTIONS)} are.")
        sweeps = {str(name): shlex.split(str(line)) for name, line in said["runs"].items()}
        return cls(folder, sweeps, {key: str(value) for key, value in said["table"].items()})

    def place(self, outputs: str) -> Path:
        """Where its runs are."""
        return Path(outputs) / "studies" / self.folder.resolve().name

    def runs(self, outputs: str) -> "list[Record]":
        """The runs that are there and that study.yaml asks for, in the order of runs.csv."""
        from unitsphere.report.records import read

        found = []
        for name, line in self.sweeps.items():
            asked = sweep.cells(line)
            for file in sorted((self.place(outputs) / name).glob("*/run.json")):
                if tuple(sorted(sweep.typed(file.parent))) in asked:
                    found.append(read(file.parent))
        return sorted(found, key=lambda record: str(record.folder))


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    action, *rest = arguments
    if action not in ("run", "check") or not rest:
        raise UsageError(f"study: {' '.join(arguments)}: `run FOLDER` or `check FOLDER` would fit.")
    study, typed, outputs = Study.read(Path(rest[0])), rest[1:], "outputs"
    for argument in [a for a in typed if a.startswith("outputs=")]:
        outputs = argument.partition("=")[2]
        typed.remove(argument)
    other = [a for a in typed if action == "check" or not a.startswith("hydra")]
    if other:
        raise UsageError(f"study: {other[0]} is not understood here; what a run is stands in study.yaml.")
    sys.exit(0 if (run(study, outputs, typed) if action == "run" else check(study, outputs)) else 1)


def run(study: Study, outputs: str, typed: Sequence[str] = ()) -> bool:
    """Run what is missing, and write what came of it; says whether every cell is done."""
    from unitsphere.report import runs_csv
    from unitsphere.runs import write

    for name, line in study.sweeps.items():
        folder = study.place(outputs) / name
        place = hydra_app.quoted(f"hydra.sweep.dir={folder}")
        command = [sys.executable, "-m", "unitsphere", "train", "-m", place, *typed, *line]
        subprocess.run(command)
    records = study.runs(outputs)
    done = [r for r in records if r.info["status"] == "done"]
    if not done:
        raise UsageError(f"{study.folder}: no run of this study is done.")
    write(study.folder / "runs.csv", runs_csv.written(done))
    table.show(done, {**study.table, "out": str(study.folder / "table")})
    covered = len(done) + sum(len(r.info.get("equal", ())) for r in done)
    return covered == sum(len(sweep.cells(line)) for line in study.sweeps.values())


def check(study: Study, outputs: str) -> bool:
    """Say what of the study does not belong together; True where nothing is wrong."""
    from unitsphere.report import render, runs_csv
    from unitsphere.report.table import show

    wrong = []
    kept = runs_csv.read(study.folder / "runs.csv")
    asked = sum(len(sweep.cells(line)) for line in study.sweeps.values())
    if asked != len(kept):
        wrong.append(f"study.yaml asks for {asked} runs, and runs.csv has {len(kept)}")
    found = [r for r in study.runs(outputs) if r.info["status"] == "done"]
    if found:
        wrong += runs_csv.differences(kept, found)
    made = table.arranged(kept, study.table)
    was = (study.folder / "table.md").read_text(encoding="utf-8") if (study.folder / "table.md").exists() else ""
    grid = render.markdown(replace(made, baseline=None, notes=()))
    if not was.startswith(grid) or (found and was != render.markdown(made)):
        wrong.append("table.md does not follow from runs.csv" + (" and the runs" if found else ""))
    for sentence in wrong:
        show(f"{study.folder}: {sentence}")
    if not wrong:
        how = "runs.csv says what the run folders say" if found else "the run folders, and so intervals, are not here"
        show(f"{study.folder}: {len(kept)} runs, and the table follows from them; {how}")
    return not wrong
