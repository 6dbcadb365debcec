"""What a run should cost, from runs that are done on this machine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from omegaconf import DictConfig, OmegaConf

from unitsphere.errors import UsageError
from unitsphere.process import processor
from unitsphere.report.comparability import is_name
from unitsphere.report.records import Record, find, leaves
from unitsphere.runs import MODEL_IS_THERE

DECISIVE = ("encoder.path", "encoder.layers", "encoder._target_", "encoder.lora")


@dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        seconds: Wall time.
        memory: Peak resident memory of the process in GiB; None where the past run did not tell.
        basis: What it comes from, in words.
    """

    seconds: float
    memory: float | None
    basis: str


def past(outputs: Path) -> list[Record]:
    """The training runs below a folder that are done and ran on this machine's processor."""
    try:
        records = find([outputs])
    except UsageError:
        return []
    own = processor()
    return [
        r
        for r in records
        if r.info["status"] in MODEL_IS_THERE and "steps" in r.info and r.info.get("processor") == own
    ]


def estimate(config: DictConfig, choices: Mapping[str, str | None], known: Sequence[Record]) -> Cost | None:
    """Time and memory of the runs that differ in the fewest settings.

    Time in training is scaled by the rows that go through it, steps x batch size; what a run spends outside training
    (data, evaluation, saving) is taken as it is. Where several runs are equally like it, their mean counts.

    Args:
        config: Resolved; `auto` settings made concrete.
        choices: Group -> option.
        known: From `past`.

    Returns:
        None where no run has the same encoder.
    """
    settings = dict(leaves(OmegaConf.to_container(config)))  # type: ignore[arg-type]
    settings |= {group: option for group, option in choices.items() if option is not None}
    alike = [r for r in known if all(r.settings.get(key) == settings.get(key) for key in DECISIVE)]
    if not alike:
        return None
    apart = [_differing(settings, r.settings) for r in alike]
    nearest = [r for r, distance in zip(alike, apart, strict=True) if distance == min(apart)]
    rows = _rows(settings)
    seconds = [_seconds(r, rows) for r in nearest]
    peaks = [r.info["peak_memory_gib"] for r in nearest if r.info.get("peak_memory_gib") is not None]
    many = f"{len(nearest)} runs" if len(nearest) > 1 else nearest[0].folder.parent.name
    how = "equal but for seed and steps" if min(apart) == 0 else f"{min(apart)} settings apart"
    return Cost(fmean(seconds), max(peaks, default=None), f"{many}, {how}")


def _differing(a: Mapping[str, object], b: Mapping[str, object]) -> int:
    """Settings in which two runs differ, but for names, the seed and the number of steps, by which time is scaled."""
    keys: Iterable[str] = (a.keys() | b.keys()) - {"trainer.max_steps"}
    return sum(a.get(key) != b.get(key) for key in keys if not is_name(key))


def _rows(settings: Mapping[str, object]) -> float | None:
    """Rows that go through training; None where epochs or time bound it."""
    steps, size = settings.get("trainer.max_steps"), settings.get("data.batch_size")
    return float(steps * size) if isinstance(steps, int) and isinstance(size, int) and steps > 0 else None


def _seconds(known: Record, rows: float | None) -> float:
    total = float(known.info["wall_seconds"])
    training = float(known.info.get("train_seconds", total))
    timed = known.info.get("train_steps", known.info["steps"])  # of a run that was resumed, those since
    size = float(str(known.settings.get("data.batch_size", 0)))
    if not timed or not size:
        return total
    return total - training + training * (known.info["steps"] * size if rows is None else rows) / (timed * size)
