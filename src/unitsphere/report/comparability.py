"""What is unequal among the runs of a table, other than what the table is about."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from unitsphere.errors import UsageError
from unitsphere.report.records import Record, leaves, written
from unitsphere.report.table import shown

NAMES = ("name", "outputs", "resume", "seed", "vector_cache")  # say nothing about a model
GROUPS_OF_NAMES = ("logger", "hydra")

Key = tuple[str, ...]


def is_name(key: str) -> bool:
    """Whether a key says what a run is called or where it goes rather than what it is."""
    return key in NAMES or key.partition(".")[0] in GROUPS_OF_NAMES or key.endswith("_target_")


def differing(records: Sequence[Record]) -> list[str]:
    """Groups and keys in which the runs that have them differ, but for the seed and for what names them.

    A key inside a group whose option differs counts only if it differs among runs of one option.
    """
    keys = [key for key in dict.fromkeys(key for r in records for key in r.settings) if not is_name(key)]
    found = [key for key in keys if "." not in key and _several(r.setting(key) for r in records if key in r.settings)]
    for key in (key for key in keys if "." in key):
        group = key.partition(".")[0]
        by_option = defaultdict(set)
        for record in (r for r in records if group in r.settings):
            by_option[record.setting(group) if group in found else ""].add(record.setting(key))
        if any(len(values) > 1 for values in by_option.values()):
            found.append(key)
    return found


def refuse_mixed_protocols(records: Sequence[Record], metrics: Sequence[str]) -> None:
    """Raise where two runs measured the same metric in two ways.

    Raises:
        UsageError: It names the task, the key and the values.
    """
    for task in sorted({metric.split("/")[1] for metric in metrics if metric.count("/") > 1}):
        stamps = [dict(leaves(r.info.get("protocol", {}).get(task, {}))) for r in records]
        stamps = [stamp for stamp in stamps if stamp]
        for key in sorted({key for stamp in stamps for key in stamp}):
            values = {written(stamp[key]) for stamp in stamps if key in stamp}  # not every run scores all STS tasks
            if len(values) > 1:
                raise UsageError(
                    f"these runs did not measure {task} in the same way: {key} is {' and '.join(sorted(values))}. "
                    "Name runs of one protocol, or allow it with mix=true."
                )


def notes(
    records: Sequence[Record], axes: Sequence[str], cells: Mapping[tuple[Key, Key], Sequence[Record]]
) -> list[str]:
    """What a reader of the table must know, one sentence each.

    Args:
        records: The runs in the table.
        axes: Keys that make its rows and columns.
        cells: (row, column) -> runs; an empty cell has none.
    """
    found = []
    names = {key: " × ".join(" ".join(part) for part in key if part) for key in cells}
    empty = [names[key] for key, runs in cells.items() if not runs]
    if empty:
        found.append(f"missing cells: {', '.join(empty)}")
    drawn = {key: sorted(str(r.seed) for r in runs if r.seed is not None) for key, runs in cells.items()}
    seeds = {key: ", ".join(of_cell) for key, of_cell in drawn.items() if of_cell}
    usual = Counter(seeds.values()).most_common(1)[0][0] if seeds else ""
    found += [f"{names[key]} has seeds {own}; most have {usual}" for key, own in seeds.items() if own != usual]
    for key in (key for key in differing(records) if key not in axes):
        found.append(f"{key} differs outside the table's axes: {_values(r.setting(key) for r in records)}")
    known = [facts(r, data="data" not in axes) for r in records]
    for fact in dict.fromkeys(fact for of_run in known for fact in of_run):
        values = [of_run[fact] for of_run in known if fact in of_run]
        if _several(values):
            found.append(f"{fact} is not the same: {_values(values)}")
    dirty = [r.folder.name for r in records if (r.info.get("git") or {}).get("dirty")]
    if dirty:
        more = f" and {len(dirty) - 3} more" if len(dirty) > 3 else ""
        found.append(f"uncommitted changes in the code of {', '.join(dirty[:3])}{more}")
    return found


def selection(records: Sequence[Record], metric: str) -> str | None:
    """How checkpoints were chosen: looks at dev, and what choosing brought; None where nothing was chosen."""
    looked = [r for r in records if r.info.get("looks")]
    if not looked:
        return None
    measure = metric.partition("/")[2]
    looks = sorted({len(r.info["looks"]) for r in looked})
    sentence = f"checkpoints chosen by dev, {' to '.join(str(n) for n in sorted({looks[0], looks[-1]}))} looks a run"
    for a, b, what in (("test", "last", "best - last on test"), ("dev", "test", "dev - test")):
        both = [r.metrics for r in looked if {f"{a}/{measure}", f"{b}/{measure}"} <= r.metrics.keys()]
        if both:
            gap = fmean(m[f"{a}/{measure}"] - m[f"{b}/{measure}"] for m in both)
            sentence += f"; {what} {shown(measure, gap, '+')} on average"
    return sentence


def facts(record: Record, data: bool = True) -> dict[str, str]:
    """What besides its settings may change a run's numbers: versions, machine, code and, unless left out, data."""
    info = record.info
    found = {key: written(info[key]) for key in ("python", "processor", "device", "threads") if key in info}
    found |= {library: written(version) for library, version in info.get("versions", {}).items()}
    found["commit"] = ((info.get("git") or {}).get("commit") or "none")[:7]
    if data:
        splits = {split: part for split, part in info.get("data", {}).items() if isinstance(part, Mapping)}
        found |= {f"{split} data": part["sha256"][:7] for split, part in splits.items()}
    return found


def _values(values: Iterable[str]) -> str:
    """Each value with its number of runs, most frequent first."""
    return " · ".join(f"{value[:60]} ({count})" for value, count in Counter(values).most_common())


def _several(values: Iterable[str]) -> bool:
    return len(set(values)) > 1
