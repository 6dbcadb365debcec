"""`unitsphere reproduce RUN`: run a saved configuration again and compare every number."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from unitsphere.cli import sweep
from unitsphere.cli.evaluate import evaluate
from unitsphere.errors import UsageError
from unitsphere.report import comparability
from unitsphere.report.records import Record, read
from unitsphere.runs import Run, stamped, write

USAGE = """unitsphere reproduce RUN|SWEEP [sample=3] [tolerance=0.001] [outputs=FOLDER]

Runs RUN/config.yaml again, in a new folder beside it or under FOLDER, and compares every metric with RUN/metrics.json.
RUN is a training run or an evaluation; of a sweep every cell that is done is run again, or a sample of them.
On the same processor, versions and threads the numbers must be equal to the last digit on a CPU; otherwise within the
tolerance (of a raw value: 0.001 is 0.1 points). Exit status 0: reproduced; 1: not; 2: bad usage.

  unitsphere reproduce outputs/simcse-mean/s1_20261124-212000
  unitsphere reproduce outputs/simcse-mean/s1_20261124-212000 outputs=again tolerance=0.005
  unitsphere reproduce outputs/sweeps/pooling_by_loss/20261124-212000 sample=3 outputs=again
"""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    options = {"tolerance": "0.001", "outputs": "", "sample": ""}
    for argument in arguments[1:]:
        key, separator, value = argument.partition("=")
        if key not in options or not separator:
            raise UsageError(f"reproduce: {argument!r} is not understood; {'=…, '.join(options)}=… are.")
        options[key] = value
    try:
        tolerance = float(options["tolerance"])
    except ValueError:
        raise UsageError(f"reproduce: tolerance={options['tolerance']} is no number.") from None
    agree = [reproduce(run, tolerance, options["outputs"]) for run in chosen(Path(arguments[0]), options["sample"])]
    if len(agree) > 1:
        from unitsphere.report.table import show

        show(f"{sum(agree)} of {len(agree)} runs reproduced")
    sys.exit(0 if all(agree) else 1)


def chosen(folder: Path, sample: str) -> list[Run]:
    """The run, or a sweep's cells that are done, or a random sample of them (the same one each time).

    Raises:
        UsageError: It is neither, or the sample is not to be had.
    """
    if not (folder / "multirun.yaml").exists():
        if sample:
            raise UsageError(f"reproduce: sample={sample} is for sweeps, and {folder} is none.")
        return [Run.open(folder)]
    now = sweep.state(folder)
    done = [cell for cell, status in zip(now.cells, now.statuses, strict=True) if status == "done"]
    if not done:
        raise UsageError(f"{folder}: no cell of this sweep is done.")
    if not sample:
        return done
    if not sample.isdecimal() or not 0 < int(sample) <= len(done):
        raise UsageError(f"reproduce: sample={sample}: 1 to {len(done)}, the cells that are done, would fit.")
    return random.Random(0).sample(done, int(sample))


def reproduce(original: Run, tolerance: float, outputs: str = "") -> bool:
    """Run again, print the comparison, and say whether every number agrees.

    Raises:
        UsageError: The run is not done, or it was bounded by time or ran on several devices.
    """
    was = original.info
    if was["status"] != "done":
        raise UsageError(
            f"{original.folder}: its status is {was['status']}; only a run that is done can be reproduced."
        )
    if original.config.get("eval_seconds") is not None:
        raise UsageError(f"{original.folder}: it was bounded by eval_seconds, so what it has scored is an accident.")
    again = (trained_again if "choices" in was else evaluated_again)(original, outputs)
    was_metrics, now_metrics = original.metrics, again.metrics
    from rich.table import Table

    from unitsphere.report import table

    changed = changes(read(original.folder), read(again.folder))
    exact = not changed and again.info["device"] == "cpu"
    allowed = 0.0 if exact else tolerance
    shown = Table("metric", title="reproduced?", title_justify="left")
    for heading in ("saved", "now", "difference", ""):
        shown.add_column(heading, justify="right")
    differing = 0
    for name in sorted(was_metrics.keys() | now_metrics.keys()):
        saved, now = was_metrics.get(name), now_metrics.get(name)
        agrees = saved is not None and now is not None and (saved == now or abs(saved - now) <= allowed)
        differing += not agrees
        difference = "-" if saved is None or now is None else f"{now - saved:+.2e}"
        shown.add_row(
            name,
            _digits(saved),
            _digits(now),
            difference,
            "equal" if saved == now else "close" if agrees else "DIFFERS",
        )
    table.show(shown)
    for name, (before, after) in changed.items():
        table.show(f"changed: {name}: {before} -> {after}")
    if any((info["git"] or {}).get("dirty") for info in (was, again.info)):
        table.show("note: there were uncommitted changes in the code of one of the two")
    demanded = "to the last digit" if exact else f"within {allowed}"
    table.show(f"{len(now_metrics)} numbers, {differing} differ ({demanded} demanded); {again.folder}")
    return differing == 0


def trained_again(original: Run, outputs: str) -> Run:
    """Train from a run's saved configuration, in a new folder.

    Raises:
        UsageError: The run was bounded by time, or ran on several devices.
    """
    from unitsphere.cli.train import go

    config, folder = original.config, original.folder.resolve()
    if config.trainer.max_time is not None:
        raise UsageError(f"{folder}: it was bounded by trainer.max_time, so its number of steps is an accident.")
    if config.trainer.devices != 1:
        raise UsageError(f"{folder}: it ran on {config.trainer.devices} devices; only one is reproduced here.")
    again = Run.create(Path(outputs or folder.parents[1]) / config.name, stamped(f"s{config.seed}"))
    again.note(status="created", name=config.name, reproduces=str(folder), choices=original.info["choices"])
    config.vector_cache = 0  # every vector is computed again
    write(again.folder / "config.yaml", OmegaConf.to_yaml(config))
    (again.folder / "overrides.yaml").write_bytes((folder / "overrides.yaml").read_bytes())
    go(again)
    return again


def evaluated_again(original: Run, outputs: str) -> Run:
    """Evaluate from an evaluation's saved configuration, in a new folder."""
    config = original.config
    config.vector_cache = 0  # every vector is computed again
    again = evaluate(config, Path(outputs or original.folder.resolve().parent))
    again.note(reproduces=str(original.folder.resolve()))
    return again


def changes(was: Record, now: Record) -> dict[str, tuple[str, str]]:
    """What differs between two runs that may change numbers: versions, processor, device, threads, code, data."""
    before, after = comparability.facts(was), comparability.facts(now)
    return {key: (value, after.get(key, "-")) for key, value in before.items() if value != after.get(key)}


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.10f}"
