"""The pictures of a run, drawn from what it has saved: curves, the path of alignment and uniformity, cosines, maps.

Paper: Wang & Isola 2020, https://arxiv.org/abs/2005.10242 (the plane of alignment and uniformity).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_auc_score

from unitsphere.report.html import legible, panels
from unitsphere.runs import Run

STAGES = {"before": "before training", "test": "chosen checkpoint"}
BLUE, ORANGE, GREEN = "#2563eb", "#d97706", "#16a34a"
PALETTE = [BLUE, ORANGE, GREEN, "#dc2626", "#9333ea", "#0891b2", "#db2777", "#65a30d", "#92400e", "#6366f1"]
GREY = "#9ca3af"
PATH = ("geometry/uniformity", "geometry/alignment")  # x and y; lower is better in both


def write(run: Run) -> list[Path]:
    """Draw `pictures/<name>.png` in the run's folder, each whole or not at all, and return their paths."""
    folder = run.folder / "pictures"
    files = []
    for name, figure in pictures(run).items():
        folder.mkdir(exist_ok=True)
        part, file = folder / f"{name}.writing", folder / f"{name}.png"
        figure.savefig(part, format="png", dpi=160)
        part.replace(file)
        files.append(file)
    return files


def pictures(run: Run) -> dict[str, Figure]:
    """Name -> figure, of all for which the run has saved something."""
    drawn = {"curves": curves(run.folder / "metrics.csv", run.info), "path": path(run.info)}
    found = {name: figure for name, figure in drawn.items() if figure is not None}
    return found | cosines(run.folder) | maps(run.folder)


def curves(file: Path, info: Mapping[str, Any]) -> Figure | None:
    """Each curve of training, and the dev metric that chooses at each look, in a panel of its own."""
    found = pd.read_csv(file) if file.exists() and file.stat().st_size else pd.DataFrame({"metric": []})
    drawn = {str(name): (part["step"], part["value"]) for name, part in found.groupby("metric", sort=False)}
    drawn = {name: line for name, line in drawn.items() if np.isfinite(line[1]).any()}
    metric = ((info.get("selected") or {}).get("metric") or "").removeprefix("dev/")
    seen = [(look["step"], look["metrics"][metric]) for look in info.get("looks") or [] if metric in look["metrics"]]
    if seen:
        of_dev = pd.DataFrame(seen, columns=["step", "value"])
        drawn = {f"dev/{metric}": (of_dev["step"], of_dev["value"])} | drawn
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = panels(rows, columns, (3.4 * columns, 2.1 * rows))
    for axis, (name, (step, value)) in zip(axes.flat, drawn.items(), strict=False):
        axis.plot(step, value, marker="o", markersize=2.5, linewidth=1.2)
        axis.set_title(name)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # steps
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    return figure


def path(info: Mapping[str, Any]) -> Figure | None:
    """Where dev was at each look, from before training to the last step; None where geometry was looked at once."""
    points = looks(info)
    if len(points) < 2:
        return None
    figure, axes = panels(1, 1, (5.2, 3.8))
    axis = axes[0][0]
    axis.plot(points["uniformity"], points["alignment"], color=GREY, linewidth=1, zorder=1)
    axis.scatter(points["uniformity"], points["alignment"], c=points["step"], cmap="viridis", s=28, zorder=2)
    chosen = points[points["step"] == info.get("best_step")]
    axis.scatter(chosen["uniformity"], chosen["alignment"], s=130, facecolors="none", edgecolors="#dc2626", zorder=3)
    for step, x, y in _apart(points):
        axis.annotate(f"{step}", (x, y), xytext=(6, 6), textcoords="offset points")
    plane(axis, "dev, by step; the chosen one is ringed" if len(chosen) else "dev, by step")
    return figure


def looks(info: Mapping[str, Any]) -> pd.DataFrame:
    """Columns step, uniformity and alignment of the looks at dev that have both."""
    seen = [
        (look["step"], *(look["metrics"][m] for m in PATH))
        for look in info.get("looks") or []
        if set(PATH) <= look["metrics"].keys()
    ]
    return pd.DataFrame(seen, columns=["step", "uniformity", "alignment"])


def plane(axis: Axes, title: str) -> None:
    """Name the axes of the plane of alignment and uniformity, and leave room for labels."""
    axis.set_title(title)
    axis.set_xlabel("uniformity (lower: spread more evenly)")
    axis.set_ylabel("alignment (lower: pairs closer)")
    axis.margins(0.12)
    axis.grid(alpha=0.3)


def _apart(points: pd.DataFrame) -> list[tuple[int, float, float]]:
    """The first and last point, and of the others those whose labels do not cover one before."""
    span = (points[["uniformity", "alignment"]].max() - points[["uniformity", "alignment"]].min()).replace(0, 1.0)
    at = (points[["uniformity", "alignment"]] / span).to_numpy()
    kept: list[int] = []
    for i in [0, len(at) - 1, *range(1, len(at) - 1)]:
        if all(np.abs(at[i] - at[j]).max() > 0.07 for j in kept):
            kept.append(i)
    rows = points.iloc[sorted(kept)].to_numpy()
    return [(int(step), float(x), float(y)) for step, x, y in rows]


def stages(folder: Path) -> Mapping[str, str]:
    """Stage -> what a picture of it is of; an evaluation has no chosen checkpoint, but scored a model as it is."""
    return STAGES if "choices" in Run(folder).info else {"test": "on test"}


def cosines(folder: Path) -> dict[str, Figure]:
    """Cosines of positive and of other pairs, or of an STS task's most and least similar thirds, before and after."""
    found = {}
    for stage, what in stages(folder).items():
        for name, kinds in _cosines(folder / "scores" / stage).items():
            found[f"cosines-{name}-{'before' if stage == 'before' else 'after'}"] = histogram(f"{name}, {what}", kinds)
    return found


def histogram(title: str, kinds: Mapping[str, pd.Series]) -> Figure:
    """Histograms over one range, with means, and how well each kind is told from the first: the area under the ROC
    curve (1: no overlap; 0.5: no difference)."""
    figure, axes = panels(1, 1, (4.8, 2.9))
    kinds = {kind: values.clip(-1, 1) for kind, values in kinds.items()}  # rounding brings a cosine over 1
    axis, (first, positive) = axes[0][0], next(iter(kinds.items()))
    room = 1.1 + 0.12 * len(kinds)  # for the key, above the tallest bar
    bins = np.linspace(min(-0.2, *(values.min() for values in kinds.values())), 1, 49)
    said = []
    for (kind, values), colour in zip(kinds.items(), (BLUE, ORANGE, GREEN), strict=False):
        axis.hist(values, bins=bins, alpha=0.55, density=True, label=f"{kind}, mean {values.mean():.2f}", color=colour)
        axis.axvline(values.mean(), ymax=1 / room, color=colour, linewidth=1, linestyle="--")
        if kind != first and len(values):
            truth = np.repeat([1, 0], [len(positive), len(values)])
            said.append(f"{kind} {roc_auc_score(truth, np.concatenate([positive, values])):.3f}")
    axis.set_title(f"{title}\nAUC, {first} against " + ", ".join(said), fontsize=9)
    axis.set_xlabel("cosine")
    axis.set_yticks([])
    axis.set_ylim(top=axis.get_ylim()[1] * room)
    axis.legend(loc="upper left", edgecolor="none", framealpha=0.9)
    return figure


def _cosines(folder: Path) -> dict[str, dict[str, pd.Series]]:
    file = folder / "geometry-cosines.parquet"
    if file.exists():
        values = pd.read_parquet(file)
        return {"pairs": {str(kind): part["cosine"] for kind, part in values.groupby("kind", sort=False)}}
    found = {}
    for task in sorted(folder.glob("sts-*.parquet"))[:1]:
        values = pd.read_parquet(task)
        low, high = values["score"].quantile([1 / 3, 2 / 3])
        thirds = {"most similar third": values["score"] >= high, "least similar third": values["score"] <= low}
        found[task.stem] = {kind: values["prediction"][which] for kind, which in thirds.items()}
    return found


def maps(folder: Path) -> dict[str, Figure]:
    """The map of `eval=map`, before and after."""
    found = {}
    for stage, what in stages(folder).items():
        file = folder / "scores" / stage / "map.parquet"
        if file.exists():
            found[f"map-{'before' if stage == 'before' else 'after'}"] = scatter(pd.read_parquet(file), what)
    return found


def scatter(points: pd.DataFrame, title: str) -> Figure:
    """Points by group; queries are triangles. A group whose name the installed fonts cannot write is its number, as in
    the page's key."""
    points, colours = grouped(points)
    columns = 1 if max(map(len, colours)) > 24 else 2  # of the key
    figure, axes = panels(1, 1, (6.4, 5.6 + 0.22 * -(-len(colours) // columns)))
    axis = axes[0][0]
    for number, (group, colour) in enumerate(colours.items(), 1):
        part = points[points["group"] == group]
        for role, marker in (("document", "o"), ("query", "^")):
            of_role = part[part["role"] == role]
            axis.scatter(of_role["x"], of_role["y"], s=12, marker=marker, color=colour, alpha=0.7, linewidths=0)
        name = group.replace("$", r"\$") if legible(group) else str(number)
        axis.scatter([], [], s=30, color=colour, label=f"{name} ({len(part)})")
    axis.set_title(title + (", queries are triangles" if points["role"].nunique() > 1 else ""))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")
    axis.spines[:].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def grouped(points: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The points, and group -> colour, most frequent first; beyond ten groups the rest become "others", in grey."""
    order = [str(group) for group in points["group"].value_counts().index]
    colours = dict(zip(order, PALETTE, strict=False))
    if len(order) > len(PALETTE):
        points = points.assign(group=points["group"].where(points["group"].isin(colours), "others"))
        colours["others"] = GREY
    return points, colours
