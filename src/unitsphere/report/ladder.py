"""What compression costs and brings: one table of rungs, a picture, and the smallest rung that meets a target."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.table import Table

from unitsphere.errors import UsageError
from unitsphere.report import render, significance
from unitsphere.report.comparability import refuse_mixed_protocols
from unitsphere.report.html import document, panels, paragraph, svg, table
from unitsphere.report.pictures import BLUE, GREY
from unitsphere.report.records import Record
from unitsphere.report.table import shown
from unitsphere.runs import write

BASELINE = "original"
UNITS = {
    "quality": ("%", "share of the original's first metric"),
    "size": ("MB", "of weights, on disk"),
    "vector": ("bytes", "a stored vector"),
    "memory": ("MiB", "at most, loading and embedding"),
    "throughput": ("/s", "texts, in batches"),
    "speedup": ("x", "throughput over the original's"),
    "latency_p50": ("ms", "of one text"),
    "latency_p99": ("ms", "of one text"),
}
COSTS = ("size", "vector", "memory", "throughput", "speedup", "speedup_one", "latency_p50", "latency_p99")
WIDE = ("95% interval", "vector bytes", "memory MiB", "texts/s", "p50 ms")  # not on the screen
CONDITION = re.compile(r"(\w+)(>=|<=)(\d+(?:\.\d+)?)(\D*)")


@dataclass(frozen=True)
class Rung:
    """One way of making the model smaller, measured.

    Attributes:
        name: How it is called.
        steps: Its compression=[…], and what else was given.
        size: Bytes of its weights (graphs, tables) on disk; a tokenizer comes besides.
        vector: Bytes of a stored vector.
        memory: MiB that loading and embedding take at most; None where it was not measured.
        throughput, latency_p50, latency_p99, speedup, speedup_one: See `bench.speed.Speed`; None likewise.
    """

    name: str
    steps: str
    size: int
    vector: float
    memory: float | None = None
    throughput: float | None = None
    speedup: float | None = None
    speedup_one: float | None = None
    latency_p50: float | None = None
    latency_p99: float | None = None


def is_one(record: Record) -> bool:
    """Whether it is a ladder, however far it has come."""
    return "rungs" in record.info or (record.folder / "rungs.yaml").exists()


def parts(records: Sequence[Record]) -> list[Record]:
    """Those of records that are ladders, or runs that these have made."""
    ladders = {record.folder.resolve() for record in records if is_one(record)}
    return [r for r in records if r.folder.resolve() in ladders or ladders & set(r.folder.resolve().parents)]


def find(records: Sequence[Record]) -> list[Record]:
    """Those of records that are ladders and finished.

    Raises:
        UsageError: None is finished, they are of different models, or rungs of one name were made or measured in
            different ways.
    """
    ladders = [record for record in records if is_one(record)]
    for ladder in ladders:
        if ladder.info["status"] != "done":
            warnings.warn(f"{ladder.folder}: {ladder.info['status']}, so it is left out", stacklevel=2)
    ladders = [ladder for ladder in ladders if ladder.info["status"] == "done"]
    if not ladders:
        raise UsageError("none of these ladders of compression is finished")
    models = list(dict.fromkeys(str(ladder.info["model"]) for ladder in ladders))
    if len(models) > 1:
        raise UsageError(f"these ladders begin with different models: {' and '.join(models)}")
    refuse_mixed_protocols(ladders, [f"{BASELINE}/{metric}" for metric in primaries(ladders)])
    first: dict[str, tuple[Record, str]] = {}
    for ladder in ladders:
        for rung in ladder.info["rungs"]:
            other, made = first.setdefault(rung["name"], (ladder, _made(ladder, rung["name"])))
            if made != _made(ladder, rung["name"]):
                raise UsageError(
                    f"{rung['name']} was made in different ways: {made} in {other.folder}, "
                    f"{_made(ladder, rung['name'])} in {ladder.folder}"
                )
    return ladders


def _made(ladder: Record, rung: str) -> str:
    """What decides a rung but for the seed, as one text."""
    overrides = yaml.safe_load((ladder.folder / "overrides.yaml").read_text(encoding="utf-8"))
    typed = [override for override in overrides if override.lstrip("+~").startswith("recovery.")]
    steps = {k: v for k, v in ladder.settings.items() if k == f"ladder.{rung}" or k.startswith("compression.")}
    read = {k: v for k, v in ladder.settings.items() if k in ("sample", "max_length") or k.startswith("data.")}
    return json.dumps([steps, typed, read], default=str)


def lines(ladders: Sequence[Record]) -> pd.DataFrame:
    """One row a rung: the means over the ladders that have it, the last one of each seed.

    Its measured costs, and of each metric its value, the standard deviation over seeds (`sd`; None of one), the share
    of the original's that is kept, and the 95% interval that resampled queries or pairs give to that share.
    """
    primary = primaries(ladders)
    rows = []
    for name in dict.fromkeys(rung["name"] for ladder in ladders for rung in ladder.info["rungs"]):
        have = [(ladder, rung) for ladder in ladders for rung in ladder.info["rungs"] if rung["name"] == name]
        of = list({ladder.settings.get("seed"): (ladder, rung) for ladder, rung in have}.values())
        row: dict[str, Any] = {"name": name, "steps": of[0][1]["steps"], "seeds": len(of)}
        for cost in COSTS:
            known = [rung[cost] for _, rung in of if rung[cost] is not None]
            row[cost] = fmean(known) if known else None
        for metric in primary:
            keys = [f"{stage}/{metric}" for stage in (BASELINE, name)]
            scored = [ladder for ladder, _ in of if all(key in ladder.metrics for key in keys)]
            if not scored:
                continue
            before, after = ([ladder.metrics[key] for ladder in scored] for key in keys)
            row[metric] = fmean(after)
            row[f"{metric} sd"] = stdev(after) if len(scored) > 1 else None
            if name == BASELINE:
                continue
            row[f"{metric} kept"] = fmean(after) / fmean(before)
            row[f"{metric} low"], row[f"{metric} high"] = significance.interval_of_share(scored, *keys)
        rows.append(row)
    return pd.DataFrame(rows)


def primaries(ladders: Sequence[Record]) -> list[str]:
    """The first metric of each task, in the order of the evaluators."""
    return list(dict.fromkeys(metric for ladder in ladders for metric in ladder.info["primaries"]))


def cells(found: pd.DataFrame, primary: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as a person reads them; how many seeds only where there are several."""
    several = bool((found["seeds"] > 1).any())
    headings = ["rung", "seeds"] if several else ["rung"]
    for metric in primary:
        headings += [metric, "kept %", "95% interval"]
    headings += ["size MB", "vector bytes", "memory MiB", "texts/s", "x", "x, one by one", "p50 ms", "p99 ms"]
    rows = []
    for row in found.to_dict("records"):
        line = [row["name"], str(row["seeds"])] if several else [row["name"]]
        for metric in primary:
            kept, low, high, sd = (row.get(f"{metric} {part}") for part in ("kept", "low", "high", "sd"))
            spread = "" if _there(sd) is None else f" ± {100 * float(_there(sd)):.2f}"
            line += [shown(metric, _there(row.get(metric))) + spread, _text(kept, "{:.1f}", 100)]
            line.append("-" if _there(low) is None else f"{_text(low, '{:.1f}', 100)} to {_text(high, '{:.1f}', 100)}")
        line += [_text(row["size"], "{:.1f}", 1e-6), _text(row["vector"], "{:,.0f}")]
        line += [_text(row["memory"], "{:.0f}"), _text(row["throughput"], "{:,.0f}")]
        line += [_text(row[key], "{:.2f}") for key in ("speedup", "speedup_one", "latency_p50", "latency_p99")]
        rows.append(line)
    return headings, rows


def _there(value: Any) -> Any:
    return None if value is None or pd.isna(value) else value


def _text(value: Any, pattern: str, factor: float = 1) -> str:
    return "-" if _there(value) is None else pattern.format(factor * value)


def terminal(ladders: Sequence[Record]) -> Table:
    """For the screen: what fits on it."""
    headings, rows = cells(lines(ladders), primaries(ladders))
    of_columns = zip(*rows, strict=True)
    some = [set(column) != {"-"} for column in of_columns]  # speeds, where they were measured
    narrow = [n for n, heading in enumerate(headings) if heading not in WIDE and some[n]]
    narrowed = Table(title="metrics x 100; what is written has more columns", title_justify="left")
    for number in narrow:
        narrowed.add_column(headings[number], justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows:
        narrowed.add_row(*(row[number] for number in narrow))
    return narrowed


def save(ladders: Sequence[Record], out: Path, picture: Path, notes: Sequence[str] = ()) -> None:
    """Write <out>.md, .tex, .csv, .html and the picture, a png."""
    found, primary = lines(ladders), primaries(ladders)
    headings, rows = cells(found, primary)
    figure = plotted(found, primary[0])
    of_page = [[(cell, "row" if number == 0 else "") for number, cell in enumerate(row)] for row in rows]
    page = [*map(paragraph, notes), svg(figure), table([(heading, "") for heading in headings], of_page)]
    forms = {
        "csv": found.to_csv(index=False),
        "md": "\n".join([*(f"- {note}" for note in notes), "", *render.lines(headings, 1, rows)]).lstrip("\n") + "\n",
        "tex": pd.DataFrame(rows, columns=headings).to_latex(index=False, escape=True),
        "html": document(f"Compression of {Path(ladders[0].info['model']).name}", page),
    }
    for folder in (out.parent, picture.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for ending, text in forms.items():
        write(out.with_name(f"{out.name}.{ending}"), text)
    part = picture.with_suffix(".writing")
    figure.savefig(part, format="png", dpi=160)
    part.replace(picture)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, gain) no other beats in both: the Pareto front, by rising cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    best, kept = float("-inf"), []
    for i in order:
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def plotted(found: pd.DataFrame, metric: str) -> Figure:
    """Quality against bytes of weights, time for a text, and bytes a vector, each with its Pareto front."""
    costs = {
        "model, MB": found["size"] / 1e6,
        "time for a text over the original's, in batches": 1 / found["speedup"].astype(float),
        "bytes a vector": found["vector"],
    }
    costs = {label: cost for label, cost in costs.items() if cost.notna().any()}  # speed may not have been measured
    figure, grid = panels(1, len(costs), (15, 5.5), sharey=True)
    for axes, (label, cost) in zip(grid.flat, costs.items(), strict=True):
        part = pd.DataFrame({"name": found["name"], "x": cost, "y": 100 * found[metric]}).dropna()
        best = part.iloc[front(list(zip(part["x"], part["y"], strict=True)))]
        axes.scatter(part["x"], part["y"], s=22, color=GREY)
        axes.plot(best["x"], best["y"], drawstyle="steps-post", color=BLUE, lw=1)
        axes.scatter(best["x"], best["y"], s=30, color=BLUE, zorder=3)
        for row in best.itertuples():
            axes.annotate(row.name, (row.x, row.y), xytext=(4, -9), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    grid.flat[0].set_ylabel(f"{metric}, x 100")
    return figure


def conditions(target: str) -> list[tuple[str, str, float]]:
    """`quality>=98% latency_p99<=10ms` as (what, >= or <=, value).

    Raises:
        UsageError: It names the part that cannot be read, and what could.
    """
    found = []
    for part in target.split():
        match = CONDITION.fullmatch(part)
        unit = UNITS.get(match[1], ("", ""))[0] if match else ""
        if match is None or match[1] not in UNITS or match[4] not in (unit, ""):
            known = ", ".join(f"{name} ({unit}, {what})" for name, (unit, what) in UNITS.items())
            raise UsageError(f"target: {part!r} cannot be read. NAME>=NUMBER or NAME<=NUMBER would fit, of {known}.")
        if match[1] == "quality" and float(match[3]) <= 1:
            raise UsageError(f"target: {part!r}: the share of the original's quality is in %, such as quality>=98%")
        found.append((match[1], match[2], float(match[3])))
    return found


def smallest(found: pd.DataFrame, primary: str, target: str) -> str | None:
    """The rung with the fewest bytes of weights, then of a vector, that meets every condition; None if none does."""
    of = {
        "quality": 100 * found.get(f"{primary} kept", pd.Series(index=found.index, dtype=float)).fillna(1.0),
        "size": found["size"] / 1e6,
        **{key: found[key] for key in ("vector", "memory", "throughput", "speedup", "latency_p50", "latency_p99")},
    }
    fits = pd.Series(True, index=found.index)
    for name, sign, value in conditions(target):
        fits &= of[name] >= value if sign == ">=" else of[name] <= value
    chosen = found[fits].sort_values(["size", "vector"], kind="stable")
    return None if chosen.empty else str(chosen["name"].iloc[0])


def noted(rungs: Mapping[str, Rung]) -> list[dict[str, Any]]:
    """What run.json keeps."""
    return [json.loads(json.dumps(asdict(rung))) for rung in rungs.values()]
