"""A sweep as one page: its cells, its table, a heat map and parallel coordinates."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from unitsphere.errors import UsageError
from unitsphere.report import page as table_page
from unitsphere.report.comparability import differing
from unitsphere.report.html import document, panels, paragraph, section, svg, table
from unitsphere.report.pictures import looks, plane
from unitsphere.report.records import Record, find
from unitsphere.report.sheet import Sheet, sheet, size
from unitsphere.report.table import SCALED, shown


def page(folder: Path, status: str) -> str:
    """The page's text.

    Args:
        folder: Of the sweep.
        status: How far it is, in a sentence.
    """
    records = find([folder])
    axes = differing(records)
    parts = [paragraph(status)]
    try:
        made = sheet(records, mix=True)
        metric = next(iter(made.rows.values()))[0].metric
        done = [r for r in records if metric in r.metrics]
        parts += [
            section(f"Table: {metric}", *table_page.parts(made)),
            section("Heat map", heat_map(done, axes, metric)),
        ]
        parts.append(section("Settings and result, a line a run", parallel(done, axes, metric)))
        parts.append(section("Alignment and uniformity on dev, a line a run", paths(done, metric)))
    except UsageError as error:
        metric = ""
        parts.append(paragraph(str(error)))
    parts.append(section("Cells", cells(folder, records, axes, metric)))
    return document(f"{folder.resolve().parent.name}/{folder.resolve().name}", parts)


def cells(folder: Path, records: Sequence[Record], axes: Sequence[str], metric: str) -> str:
    """One line a cell, with a link to its own page."""
    rows = []
    for r in records:
        own = r.folder.resolve().relative_to(folder.resolve()).as_posix()
        link = (f"{own}/report.html", "link") if (r.folder / "report.html").exists() else (own, "row")
        values = [(r.setting(axis), "row") for axis in axes]
        result = shown(metric, r.metrics.get(metric)) if metric else "-"
        seconds = str(r.info.get("wall_seconds", "-"))
        rows.append([link, (r.info["status"], "row"), *values, (str(r.seed), ""), (result, ""), (seconds, "")])
    headings = [("cell", "row"), ("status", "row"), *((axis, "row") for axis in axes)]
    return table([*headings, ("seed", ""), (metric or "result", ""), ("seconds", "")], rows)


def heat_map(records: Sequence[Record], axes: Sequence[str], metric: str) -> str:
    """The mean over seeds, by the first two settings that differ; nothing where fewer do."""
    if len(axes) < 2:
        return ""
    made: Sheet = sheet(records, rows=[axes[0]], cols=[axes[1]], metrics=[metric], mix=True)
    values = np.array([[np.nan if c.mean is None else c.mean for c in row] for row in made.rows.values()])
    values = values * (1 if metric.endswith(SCALED) else 100)
    figure, drawn = panels(1, 1, (1.1 * values.shape[1] + 2, 0.5 * values.shape[0] + 1))
    axis = drawn[0][0]
    colours = axis.pcolormesh(values, cmap="viridis", edgecolors="none")
    middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
    for (y, x), value in np.ndenumerate(values):
        text = "-" if np.isnan(value) else f"{value:.2f}"
        axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", color="#fefefe" if value < middle else "#010101")
    axis.set_xticks(np.arange(values.shape[1]) + 0.5, made.columns)
    axis.set_yticks(np.arange(values.shape[0]) + 0.5, [" ".join(row) for row in made.rows])
    axis.set(xlabel=axes[1], ylabel=axes[0])
    axis.invert_yaxis()
    figure.colorbar(colours, ax=axis)
    return svg(figure)


def paths(records: Sequence[Record], metric: str) -> str:
    """The way of each run through the plane of alignment and uniformity, from its first look at dev to the dot that is
    its last, in the colour of its result; nothing where no run has two looks at geometry."""
    seen = [(looks(r.info), r.metrics[metric]) for r in records]
    seen = [(points, result) for points, result in seen if len(points) > 1]
    if not seen:
        return ""
    result = np.array([value for _, value in seen]) * (1 if metric.endswith(SCALED) else 100)
    figure, drawn = panels(1, 1, (6, 4))
    axis, colour = drawn[0][0], ScalarMappable(Normalize(result.min(), result.max()), matplotlib.colormaps["viridis"])
    for (points, _), value in zip(seen, result, strict=True):
        x, y, own = points["uniformity"], points["alignment"], colour.to_rgba(value)
        axis.plot(x, y, color=own, linewidth=1.2)
        axis.scatter(x.iloc[-1:], y.iloc[-1:], color=[own], s=28)
    plane(axis, f"{len(seen)} runs")
    figure.colorbar(colour, ax=axis, label=metric)
    return svg(figure)


def parallel(records: Sequence[Record], axes: Sequence[str], metric: str) -> str:
    """Parallel coordinates: a line a run through its settings to its result."""
    if not axes or len(records) < 2:
        return ""
    result = np.array([r.metrics[metric] for r in records]) * (1 if metric.endswith(SCALED) else 100)
    figure, drawn = panels(1, 1, (1.6 * len(axes) + 2, 3.2))
    axis, colour = drawn[0][0], ScalarMappable(Normalize(result.min(), result.max()), matplotlib.colormaps["viridis"])
    heights = []
    for x, key in enumerate(axes):
        values = sorted(dict.fromkeys(r.setting(key) for r in records), key=size)
        place = {value: (i + 0.5) / len(values) for i, value in enumerate(values)}
        heights.append([place[r.setting(key)] for r in records])
        for value, y in place.items():
            axis.text(x - 0.03, y, value, ha="right", va="center")
        axis.axvline(x, color="#b0b0b0", linewidth=0.8)
    span = np.ptp(result) or 1.0
    lines = np.array([*heights, (result - result.min()) / span]).T  # (runs, axes + 1)
    for line, value in zip(lines, result, strict=True):
        axis.plot(line, color=colour.to_rgba(value), linewidth=1.2, alpha=0.8)
    last = len(axes)
    axis.axvline(last, color="#b0b0b0", linewidth=0.8)
    for y, value in ((0, result.min()), (1, result.max())):
        axis.text(last + 0.03, y, f"{value:.2f}", va="center")
    axis.set_xticks(range(last + 1), [*axes, metric.removeprefix("test/")])
    axis.set_yticks([])
    axis.set_xlim(-0.6, last + 0.4)
    axis.spines[["left", "bottom"]].set_visible(False)
    return svg(figure)
