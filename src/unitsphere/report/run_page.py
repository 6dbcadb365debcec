"""A run as one page: what it is, scores, curves, the space before and after, and where it is wrong."""

import html
from collections.abc import Mapping
from math import isfinite
from pathlib import Path

import pandas as pd
import yaml

from unitsphere.report.html import beside, document, paragraph, section, svg, table
from unitsphere.report.pictures import STAGES, cosines, curves, grouped, path
from unitsphere.report.records import written
from unitsphere.report.table import compared, shown
from unitsphere.runs import Run


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
        section("Training", *(svg(drawn) for drawn in (curves(run.folder / "metrics.csv", info),) if drawn)),
        section("Alignment and uniformity", *(svg(drawn) for drawn in (path(info),) if drawn)),
        section("Cosines", beside(svg(drawn) for drawn in cosines(run.folder).values())),
        section("The space, in the plane of its two principal components", maps(run.folder)),
        section("Map of the space", grouped_maps(run.folder)),
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


def grouped_maps(folder: Path) -> str:
    """The map of `eval=map`, before and after, each with the key of its groups."""
    drawn = []
    for stage, what in STAGES.items():
        file = folder / "scores" / stage / "map.parquet"
        if file.exists():
            points, colours = grouped(pd.read_parquet(file))
            counts = points["group"].value_counts()
            names = [f"{n}: {group} ({counts[group]})" for n, group in enumerate(colours, 1)]
            key = "".join(
                f'<li><svg width="12" height="12"><circle style="fill:{colour}" cx="6" cy="6" r="5"/></svg> '
                f"{html.escape(name)}</li>"
                for name, colour in zip(names, colours.values(), strict=True)
            )
            dots = _dots(points.assign(colour=points["group"].map(colours)))
            drawn.append(f'{dots}<figcaption>{what}<ul class="key">{key}</ul></figcaption>')
    return beside(drawn)


def _dots(points: pd.DataFrame) -> str:
    """A dot a text, in its `colour` or else its role's."""
    middle = (points[["x", "y"]].max() + points[["x", "y"]].min()) / 2
    span = float(max((points[["x", "y"]] - middle).abs().max().max(), 1e-9))
    at = points.assign(x=200 + 190 * (points.x - middle.x) / span, y=200 - 190 * (points.y - middle.y) / span)
    dots = ""
    for p in at.to_dict("records"):
        said = html.escape(str(p["text"]))
        style = f' style="fill:{p["colour"]}"' if "colour" in p else ""
        dots += f'<circle class="{p["role"]}"{style} cx="{p["x"]:.1f}" cy="{p["y"]:.1f}" r="3">'
        dots += f"<title>{said}</title></circle>"
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
