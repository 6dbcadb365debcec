"""`unitsphere report FOLDER…`: a run or a sweep as one page, report.html in its folder."""

from collections.abc import Sequence
from pathlib import Path

from unitsphere.cli import sweep
from unitsphere.errors import UsageError
from unitsphere.runs import Run, write

USAGE = """unitsphere report FOLDER…

Writes FOLDER/report.html: of a run its scores, curves, cosines, the map of its space and its worst errors, before and
after training; of a sweep its cells, table, heat map, parallel coordinates and ways through alignment and uniformity.
One file that needs no network, light and dark; a run's pictures are in FOLDER/pictures as PNG files too.
`python train.py` writes it at the end of each run and sweep; this is for those that were cut or are older.

  unitsphere report outputs/simcse-mean/s1_20261124-212000
  unitsphere report outputs/sweeps/train/20261124-212000
"""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    from unitsphere.report.table import show

    for folder in map(Path, arguments):
        show(str(of_sweep(folder) if (folder / "multirun.yaml").exists() else of_run(Run.open(folder))))


def of_run(run: Run) -> Path:
    """Write a run's page and pictures, and return the page's path.

    Raises:
        UsageError: It is an evaluation, which has nothing to show but its scores.
    """
    from unitsphere.report import pictures, run_page

    if "choices" not in run.info:
        raise UsageError(f"{run.folder}: an evaluation has no page; `unitsphere table {run.folder}` shows its scores.")
    pictures.write(run)
    write(run.folder / "report.html", run_page.page(run))
    return run.folder / "report.html"


def of_sweep(folder: Path) -> Path:
    """Write a sweep's page."""
    from unitsphere.report import sweep_page

    write(folder / "report.html", sweep_page.page(folder, str(sweep.state(folder))))
    return folder / "report.html"
