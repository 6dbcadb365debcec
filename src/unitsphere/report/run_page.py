"""A run as one page: what it is, scores, curves, the space before and after, and where it is wrong."""

import html
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from unitsphere.report.html import beside, document, panels, paragraph, section, svg, table
from unitsphere.report.records import written
from unitsphere.report.table import compared, shown
from unitsphere.runs import Run

STAGES = {"before": "before training", "test": "chosen checkpoint"}


def page(run: Run) -> str:
    """The page's text, with what is there: a run that was cut or failed has one too."""
    info, metrics = run.info, run.metrics
    typed = yaml.safe_load((run.folder / "overrides.yaml").read_text(encoding="utf-8")) or []
    line = "python train.py " + " ".join(typed)
    parts = [
        paragraph(f"{run.folder.name}: {info['status']}" + (f", {info['error']}" if info.get("error") else "")),
        f"<p><code>{html.escape(line)}</code></p>",
        facts(info),
        section("Scores on test, x 100 but for geometry", scores(metrics, info)),
        section("Training", curves(run.folder / "metrics.csv", info)),
        section("Cosines", beside(svg(drawn) for drawn in histograms(run.folder).values())),
        section("The space, in the plane of its two principal components", maps(run.folder)),
        section("Worst queries", *queries(run.folder)),
        section("Pairs that are furthest from their place", *pairs(run.folder)),
    ]
    return document(info.get("name") or run.folder.parent.name, parts)


def facts(info: Mapping[str, object]) -> str:
    """What the run was made of, a line a fact."""

    def part(key: str) -> Mapping[str, object]:
        node = info.get(key)
        return node if isinstance(node, Mapping) else {}

    parts = {k: v for k, v in part("data").items() if isinstance(v, Mapping) and "rows" in v}
    data = [f"{split} {node['rows']} rows" for split, node in parts.items()]
    git = part("git")
    commit = str(git.get("commit") or "none")[:7] + (" with uncommitted changes" if git.get("dirty") else "")
    choices = {k: v for k, v in part("choices").items() if v is not None}
    rows = {
        "choices": ", ".join(f"{key}={value}" for key, value in choices.items()),
        "data": ", ".join([str(part("data").get("name", "")), *data]),
        "seed": info.get("seed"),
        "steps": info.get("steps"),
        "parameters": f"{info['parameters']:,}" if "parameters" in info else None,
        "time and memory": f"{info.get('wall_seconds')} s, {info.get('peak_memory_gib')} GiB at most",
        "machine": f"{info.get('processor')}, {info.get('threads')} threads, {info.get('device')}",
        "versions": ", ".join(f"{name} {version}" for name, version in part("versions").items() if version),
        "commit": commit,
        "started": info.get("started"),
    }
    lines = "".join(
        f"<tr><td class='row'>{name}</td><td class='text'>{html.escape(written(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    )
    return f"<table><tbody>{lines}</tbody></table>"


def scores(metrics: Mapping[str, float], info: Mapping[str, object]) -> str:
    """Before, best and last."""
    headings = (
        "before",
        f"best, step {info.get('best_step', '-')}",
        "best - before",
        f"last, step {info.get('steps', '-')}",
    )
    rows = []
    for name, before, best, gain, last in compared(metrics):
        values = (shown(name, before), shown(name, best), shown(name, gain, "+"), shown(name, last))
        rows.append([(name, "row"), *((value, "") for value in values)])
    return table([("metric", "row"), *((h, "") for h in headings)], rows) if rows else ""


def curves(file: Path, info: Mapping[str, object]) -> str:
    """Each curve of training, and the dev metric that chooses at each look, in a panel of its own."""
    found = pd.read_csv(file) if file.exists() and file.stat().st_size else pd.DataFrame({"metric": []})
    drawn = {str(name): (part["step"], part["value"]) for name, part in found.groupby("metric", sort=False)}
    drawn = {name: line for name, line in drawn.items() if np.isfinite(line[1]).any()}
    looks, selected = info.get("looks"), info.get("selected")
    metric = selected.get("metric") if isinstance(selected, Mapping) else None
    if isinstance(looks, list):
        seen = [(look["step"], look["metrics"][metric]) for look in looks if metric in look["metrics"]]
        if seen:
            of_dev = pd.DataFrame(seen, columns=["step", "value"])
            drawn = {f"dev/{metric}": (of_dev["step"], of_dev["value"])} | drawn
    if not drawn:
        return ""
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = panels(rows, columns, (3.4 * columns, 2.1 * rows))
    for axis, (name, (step, value)) in zip(axes.flat, drawn.items(), strict=False):
        axis.plot(step, value, marker="o", markersize=2.5, linewidth=1.2)
        axis.set_title(name)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    return svg(figure)


def histograms(folder: Path) -> dict[str, Figure]:
    """Cosines of positive and of other pairs, or of an STS task's most and least similar thirds, before and after."""
    found = {}
    for stage, what in STAGES.items():
        for name, kinds in _cosines(folder / "scores" / stage).items():
            figure, axes = panels(1, 1, (4.2, 2.4))
            for (kind, values), colour in zip(kinds.items(), ("#2563eb", "#d97706"), strict=True):
                axes[0][0].hist(values, bins=40, range=(-0.2, 1), alpha=0.6, label=kind, color=colour)
            axes[0][0].set_title(f"{name}, {what}")
            axes[0][0].set_yticks([])
            axes[0][0].legend(frameon=False)
            found[f"{name}, {what}"] = figure
    return found


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


def maps(folder: Path) -> str:
    """The map before and after, a dot a text, which is shown where the pointer rests."""
    drawn = []
    for stage, what in STAGES.items():
        file = folder / "scores" / stage / "geometry-map.parquet"
        if file.exists():
            drawn.append(f"{_dots(pd.read_parquet(file))}<figcaption>{what}</figcaption>")
    key = '<p class="quiet">Queries <svg width="12" height="12"><circle class="query" cx="6" cy="6" r="5"/></svg>, '
    key += 'documents <svg width="12" height="12"><circle class="document" cx="6" cy="6" r="5"/></svg></p>'
    return key + beside(drawn) if drawn else ""


def _dots(points: pd.DataFrame) -> str:
    span = float(max(points[["x", "y"]].abs().max().max(), 1e-9))
    at = points.assign(x=200 + 190 * points.x / span, y=200 - 190 * points.y / span)
    dots = ""
    for p in at.to_dict("records"):
        said = html.escape(str(p["text"]))
        dots += f'<circle class="{p["role"]}" cx="{p["x"]:.1f}" cy="{p["y"]:.1f}" r="3"><title>{said}</title></circle>'
    return f'<svg viewBox="0 0 400 400" role="img">{dots}</svg>'


def queries(folder: Path) -> list[str]:
    """Of each retrieval set the queries with the lowest mrr@10, and what it was before training."""
    found = []
    for file in sorted((folder / "scores" / "test").glob("*-worst.parquet")):
        name = file.name.removesuffix("-worst.parquet")
        rows, before = pd.read_parquet(file), folder / "scores" / "before" / f"{name}.parquet"
        was = pd.read_parquet(before).set_index("query")["mrr@10"] if before.exists() else pd.Series(dtype=float)
        lines = []
        for r in rows.head(25).to_dict("records"):
            rank = f"{r['rank']:.0f}" if isfinite(r["rank"]) else "> 100"
            texts = [(str(r[column]), "text") for column in ("text", "relevant", "found")]
            scored = [shown("", r["mrr@10"]), shown("", was.get(r["query"]))]
            lines.append([*texts, (rank, ""), *((score, "") for score in scored)])
        headings = [("query", "row"), ("relevant", "row"), ("ranked before it", "row")]
        headings += [("rank", ""), ("mrr@10", ""), ("before training", "")]
        found.append(paragraph(name) + table(headings, lines))
    return found


def pairs(folder: Path) -> list[str]:
    """Of each STS task the pairs whose rank by cosine is furthest from their rank by gold score."""
    found = []
    for file in sorted((folder / "scores" / "test").glob("sts-*.parquet")):
        rows = pd.read_parquet(file)
        ranks = rows[["score", "prediction"]].rank(pct=True)
        off = (ranks["prediction"] - ranks["score"]).rename("off")
        far = rows.join(off).sort_values("off", key=abs, ascending=False, kind="stable").head(15)
        lines = []
        for r in far.to_dict("records"):
            values = (f"{r['score']:g}", f"{r['prediction']:.3f}", f"{100 * r['off']:+.0f}")
            texts = [(str(r[side]), "text") for side in ("sentence1", "sentence2")]
            lines.append([*texts, *((value, "") for value in values)])
        headings = [
            *((h, "row") for h in ("sentence 1", "sentence 2")),
            *((h, "") for h in ("gold", "cosine", "ranks off, %")),
        ]
        found.append(paragraph(file.stem.removeprefix("sts-")) + table(headings, lines))
    return found
