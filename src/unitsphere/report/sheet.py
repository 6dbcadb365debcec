"""Runs arranged as a table: rows, columns, mean and spread over seeds, and what is best in a column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from math import inf, isnan

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.report import comparability
from unitsphere.report.records import Record
from unitsphere.report.significance import Difference, difference
from unitsphere.runs import MODEL_IS_THERE

LOWER_IS_BETTER = ("alignment", "uniformity", "mean_cosine", "loss")
STS = tuple(f"test/sts/{task}" for task in ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb", "sickr", "avg"))
UNTRAINED = "before"  # as a baseline: each model before its training

Key = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A metric over the runs that differ in their seed only.

    Attributes:
        metric: Its full name.
        runs: Those that have it.
        mean, sd: Over the runs; sd is None for fewer than two (ddof = 1).
        place: 1 for the best of its column, 2 for the second, else 0.
        difference: From the baseline; None for the baseline itself, and where there is none.
    """

    metric: str
    runs: tuple[Record, ...]
    mean: float | None
    sd: float | None
    place: int = 0
    difference: Difference | None = None


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        headings: Of the columns that name a row.
        columns: Of the cells.
        rows: Row key -> its cells, one a column.
        notes: What its reader must know.
        baseline: The row that differences are taken from, `before`, or None.
        baseline_column: The column that all differences are taken from; None where each is from its own.
    """

    headings: Key
    columns: tuple[str, ...]
    rows: Mapping[Key, tuple[Cell, ...]]
    notes: tuple[str, ...]
    baseline: Key | str | None = None
    baseline_column: Key | None = None


def sheet(
    records: Sequence[Record],
    rows: Sequence[str] | None = None,
    cols: Sequence[str] = (),
    metrics: Sequence[str] = (),
    baseline: Mapping[str, str] | str | None = None,
    mix: bool = False,
) -> Sheet:
    """Arrange runs.

    Args:
        records: Runs; those that are not done are left out and named.
        rows: Groups and keys whose values make the rows; None takes those in which the runs differ.
        cols: The same for columns, with a single metric; empty makes one column a metric.
        metrics: Names or patterns, `test/` understood: `docstrings/mrr@10`, `sts/*`; `sts` is the SimCSE paper's seven
            tasks and their mean. Empty takes the first run's primary one.
        baseline: Values of the rows' (and columns') keys, some or all, or "before" for the untrained model.
        mix: Allow runs that measured in different ways.

    Raises:
        UsageError: Nothing is left to show, a metric or key is in no run, or protocols differ.
    """
    done = [r for r in records if r.info["status"] in MODEL_IS_THERE]
    notes = [f"left out: {r.folder} is {r.info['status']}" for r in records if r.info["status"] not in MODEL_IS_THERE]
    if not done:
        raise UsageError("no run is done: " + "; ".join(notes))
    names = _metrics(done, metrics)
    if cols and len(names) > 1:
        raise UsageError(f"cols= takes one metric, and there are {len(names)}: {', '.join(names)}")
    without = [r for r in done if not any(name in r.metrics for name in names)]
    notes += [f"left out: {r.folder} has none of these metrics" for r in without]
    done = [r for r in done if any(name in r.metrics for name in names)]
    axes = list(rows) if rows is not None else [k for k in comparability.differing(done) if k not in cols]
    for key in (*axes, *cols):
        if not any(key in r.settings for r in done):
            raise UsageError(
                f"no run has a group or key {key!r}; they differ in {', '.join(comparability.differing(done))}"
            )
    if not mix:
        comparability.refuse_mixed_protocols(done, names)

    row_keys, col_keys = _ordered(done, axes), _ordered(done, cols)
    groups = {
        (row, col): [r for r in done if _key(r, axes) == row and _key(r, cols) == col]
        for row in row_keys
        for col in col_keys
    }
    made = {row: [_cell(groups[row, col], name) for col in col_keys for name in names] for row in row_keys}
    reference = None
    if baseline == UNTRAINED:
        for cells in made.values():
            cells[:] = [_compared(cell, cell.runs, f"before/{_bare(cell.metric)}") for cell in cells]
    elif baseline is not None:
        reference = _chosen(baseline, axes, cols, groups)
        for row, cells in made.items():
            for i, cell in enumerate(cells):
                own = col_keys[i // len(names)]
                at = reference[0], own if reference[1] is None else reference[1]
                if (row, own) != at:
                    cells[i] = _compared(cell, _latest(groups[at], cell.metric), cell.metric)
    places = [_places([cells[i] for cells in made.values()]) for i in range(len(col_keys) * len(names))]
    ranked = {
        row: tuple(replace(cell, place=places[i][n]) for i, cell in enumerate(cells))
        for n, (row, cells) in enumerate(made.items())
    }
    for name in names:
        shown = {id(r) for runs in groups.values() for r in _latest(runs, name)}
        twice = [r for r in done if name in r.metrics and id(r) not in shown]
        notes += [f"measured twice, {name} of {r.folder} is not shown, but the later" for r in twice]
    once = {key: list({_identity(r): r for r in runs}.values()) for key, runs in groups.items()}
    notes += comparability.notes(done, [*axes, *cols], once)
    chosen = comparability.selection(done, names[0])
    columns = [" ".join(col) for col in col_keys] if cols else [name.removeprefix("test/") for name in names]
    return Sheet(
        tuple(axes) or ("run",),
        tuple(columns),
        {row or ("all",): cells for row, cells in ranked.items()},
        tuple(notes + ([chosen] if chosen else [])),
        UNTRAINED if baseline == UNTRAINED else reference[0] if reference else None,
        reference[1] if reference and cols else None,
    )


def _metrics(records: Sequence[Record], wanted: Sequence[str]) -> list[str]:
    have = list(dict.fromkeys(name for r in records for name in r.metrics))
    primary = next((name for r in records if (name := r.info.get("primary"))), "")
    patterns = [p for w in (wanted or [primary]) for p in (STS if w == "sts" else (w,))]
    found: list[str] = []
    for pattern in patterns:
        stages = ("", "test/") if pattern.partition("/")[0] in ("test", "before", "last", "dev") else ("test/",)
        match = [name for name in have if any(fnmatch(name, stage + pattern) for stage in stages)]
        if not match:
            raise UsageError(
                f"metric={pattern}: no run has it. There are {', '.join(sorted({_bare(n) for n in have}))}"
            )
        found += match
    return list(dict.fromkeys(found))


def _bare(name: str) -> str:
    return name.partition("/")[2]


def _key(record: Record, keys: Sequence[str]) -> Key:
    return tuple(record.setting(key) for key in keys)


def _identity(record: Record) -> str:
    """Equal for runs with equal settings and seed, and for a run and its evaluations."""
    kept = {k: v for k, v in record.settings.items() if not comparability.is_name(k) or k == "seed"}
    return str(sorted(kept.items(), key=str))


def _latest(runs: Sequence[Record], metric: str) -> tuple[Record, ...]:
    """Those that have a metric; of several with equal settings, the one that started last."""
    having = sorted((r for r in runs if metric in r.metrics), key=lambda r: str(r.info.get("started")))
    return tuple({_identity(r): r for r in having}.values())


def _cell(runs: Sequence[Record], metric: str) -> Cell:
    having = _latest(runs, metric)
    values = [r.metrics[metric] for r in having]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(metric, having, float(np.mean(values)) if values else None, sd)


def _compared(cell: Cell, others: Sequence[Record], metric: str) -> Cell:
    there = [r for r in others if metric in r.metrics]
    if not cell.runs or not there or cell.metric.startswith("dev/") != metric.startswith("dev/"):
        return cell
    return replace(cell, difference=difference(there, cell.runs, metric, cell.metric))


def _places(column: Sequence[Cell]) -> list[int]:
    """1, 2 or 0 of each cell; equal means share a place."""
    sign = -1 if column[0].metric.endswith(LOWER_IS_BETTER) else 1
    means = [None if c.mean is None or isnan(c.mean) else sign * c.mean for c in column]
    order = sorted({mean for mean in means if mean is not None}, reverse=True)
    if len(order) < 2:
        return [0] * len(column)
    return [0 if mean is None else {order[0]: 1, order[1]: 2}.get(mean, 0) for mean in means]


def _chosen(
    wanted: Mapping[str, str] | str, axes: Sequence[str], cols: Sequence[str], groups: Mapping[tuple[Key, Key], object]
) -> tuple[Key, Key | None]:
    """The row, and the column where one is named, that a baseline means."""
    if isinstance(wanted, str):
        raise UsageError(f"baseline={wanted}: before, or key=value of the table's rows, would fit.")
    unknown = wanted.keys() - {*axes, *cols}
    if unknown:
        raise UsageError(f"baseline: {sorted(unknown)[0]} is no row or column here; {', '.join((*axes, *cols))} are.")
    fitting = [
        (row, col)
        for row, col in groups
        if all(_means(v, dict(zip((*axes, *cols), (*row, *col), strict=True))[k]) for k, v in wanted.items())
    ]
    rows = list(dict.fromkeys(row for row, _ in fitting))
    if len(rows) != 1:
        said = ", ".join(f"{k}={v}" for k, v in wanted.items())
        there = "; ".join(dict.fromkeys(" ".join(row) for row in (rows or (row for row, _ in groups))))
        raise UsageError(f"baseline={said} names {len(rows)} rows, and one is needed. There are: {there}")
    columns = list(dict.fromkeys(col for _, col in fitting))
    return rows[0], columns[0] if len(columns) == 1 else None


def _ordered(records: Sequence[Record], axes: Sequence[str]) -> list[Key]:
    """The values of these keys that runs have: numbers by size, words as the runs began; the first key varies least."""
    begun = sorted(records, key=lambda r: str(r.info.get("started")))
    keys: list[Key] = list(dict.fromkeys(tuple(r.setting(k) for k in axes) for r in begun))
    orders = [sorted(dict.fromkeys(column), key=size) for column in zip(*keys, strict=True)]
    return sorted(keys, key=lambda key: [order.index(v) for order, v in zip(orders, key, strict=True)])


def size(value: str) -> float:
    """A setting's place among others: numbers by size, then words."""
    try:
        return float(value)
    except ValueError:
        return inf


def _means(typed: str, shown: str) -> bool:
    """Whether what was typed (0.10, 1e-4) is what the table shows (0.1, 0.0001)."""
    return typed == shown or size(typed) == size(shown) < inf


def ablation(table: Sheet) -> Sheet:
    """The same table with one heading, a row saying only in what it departs from the baseline, which stands first.

    Raises:
        UsageError: No row is the baseline.
    """
    full = table.baseline
    if not isinstance(full, tuple):
        raise UsageError("layout=ablation needs the full model as baseline=key=value,…")

    def label(row: Key) -> str:
        changed = [f"{k} = {v}" for k, v, usual in zip(table.headings, row, full, strict=True) if v != usual]
        return ", ".join(changed) or "full"

    rows = sorted(table.rows, key=lambda row: row != full)
    return Sheet(
        ("variant",),
        table.columns,
        {(label(r),): table.rows[r] for r in rows},
        table.notes,
        ("full",),
        table.baseline_column,
    )
