"""`unitsphere reproduce RUN`: run a saved configuration again and compare every number."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unitsphere.errors import UsageError
from unitsphere.runs import Run, stamped

USAGE = """unitsphere reproduce RUN [tolerance=0.001] [outputs=FOLDER]

Runs RUN/config.yaml again, in a new folder beside it or under FOLDER, and compares every metric with RUN/metrics.json.
On the same processor, versions and threads the numbers must be equal to the last digit on a CPU; otherwise within the
tolerance (of a raw value: 0.001 is 0.1 points). Exit status 0: reproduced; 1: not; 2: bad usage.

  unitsphere reproduce outputs/simcse-mean/s1_20261124-212000
  unitsphere reproduce outputs/simcse-mean/s1_20261124-212000 outputs=again tolerance=0.005
"""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    options = {"tolerance": "0.001", "outputs": ""}
    for argument in arguments[1:]:
        key, separator, value = argument.partition("=")
        if key not in options or not separator:
            raise UsageError(f"reproduce: {argument!r} is not understood; tolerance=… and outputs=… are.")
        options[key] = value
    try:
        tolerance = float(options["tolerance"])
    except ValueError:
        raise UsageError(f"reproduce: tolerance={options['tolerance']} is no number.") from None
    sys.exit(0 if reproduce(Run.open(arguments[0]), tolerance, options["outputs"]) else 1)


def reproduce(original: Run, tolerance: float, outputs: str = "") -> bool:
    """Run again, print the comparison, and say whether every number agrees.

    Raises:
        UsageError: The run is not done, or it was bounded by time.
    """
    config, was = original.config, original.info
    if was["status"] != "done":
        raise UsageError(
            f"{original.folder}: its status is {was['status']}; only a run that is done can be reproduced."
        )
    if config.trainer.max_time is not None:
        raise UsageError(
            f"{original.folder}: it was bounded by trainer.max_time, so its number of steps is an accident."
        )
    if config.trainer.devices != 1:
        raise UsageError(f"{original.folder}: it ran on {config.trainer.devices} devices; only one is reproduced here.")
    from rich.table import Table

    from unitsphere.report import table
    from unitsphere.training.run import train

    again = Run.create(Path(outputs or original.folder.resolve().parents[1]) / config.name, stamped(f"s{config.seed}"))
    again.note(status="created", name=config.name, reproduces=str(original.folder), choices=was["choices"])
    for file in ("config.yaml", "overrides.yaml"):
        (again.folder / file).write_bytes((original.folder / file).read_bytes())
    now_metrics, was_metrics = train(config, again), original.metrics
    changed = changes(was, again.info)
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


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two runs that may change numbers: versions, processor, device, threads, data."""
    flat_was, flat_now = ({k: info[k] for k in ("python", "processor", "device", "threads")} for info in (was, now))
    for flat, info in ((flat_was, was), (flat_now, now)):
        flat |= {f"{name} version": version for name, version in info["versions"].items()}
        flat["code"] = (info["git"] or {}).get("commit")
        flat |= {f"{split} data": part["sha256"][:12] for split, part in info["data"].items() if isinstance(part, dict)}
    keys = [key for key in flat_was if flat_was[key] != flat_now.get(key)]
    return {key: (flat_was[key], flat_now.get(key)) for key in keys}


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.10f}"
