"""A sheet as one self-contained page: a table that sorts, a picture, light and dark; no network."""

import html
import io

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from unitsphere.report import render
from unitsphere.report.sheet import Sheet
from unitsphere.report.table import SCALED

STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #3b82f6; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.row, td.row { text-align: left; } th { cursor: pointer; } th::after { content: " ↕"; opacity: .4; }
.first { font-weight: 700; } .second { text-decoration: underline; } li { opacity: .8; }
svg { max-width: 100%; height: auto; color: CanvasText; }
"""
SORT = """
for (const heading of document.querySelectorAll("th")) heading.onclick = () => {
  const body = heading.closest("table").tBodies[0], i = heading.cellIndex, down = heading.dataset.down !== "1";
  heading.dataset.down = down ? "1" : "";
  const value = row => { const t = row.cells[i].textContent, n = parseFloat(t); return isNaN(n) ? t : n; };
  const less = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "string" ? -1 : 1;
  [...body.rows].sort((a, b) => less(value(a), value(b)) * (down ? -1 : 1)).forEach(row => body.append(row));
};
"""


def page(sheet: Sheet, title: str) -> str:
    """The page's text."""
    place = {0: "", 1: "first", 2: "second"}
    rows = [
        [(value, "row") for value in row] + [(render.number(cell), place[cell.place]) for cell in cells]
        for row, cells in sheet.rows.items()
    ]
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(render.NOTE)}. Click a heading to sort.</p>"]
    parts.append(_table([(h, "row") for h in sheet.headings] + [(c, "") for c in sheet.columns], rows))
    parts.append(picture(sheet))
    if sheet.baseline is not None:
        parts.append(f"<h2>Differences from {html.escape(render.against(sheet))}</h2>")
        headings = [("", "row"), ("metric", "row"), *((h, "") for h in render.DIFFERENCE)]
        compared = [[(v, "row" if i < 2 else "") for i, v in enumerate(line)] for line in render.differences(sheet)]
        parts.append(_table(headings, compared))
    parts.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in sheet.notes)}</ul>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}<script>{SORT}</script></body></html>\n"
    )


def _table(headings: list[tuple[str, str]], rows: list[list[tuple[str, str]]]) -> str:
    def line(cells: list[tuple[str, str]], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag} class="{c}">{html.escape(text)}</{tag}>' for text, c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(headings, 'th')}</thead><tbody>{body}</tbody></table>"


def picture(sheet: Sheet) -> str:
    """Means with one standard deviation, a panel a column, as inline SVG in the page's own colours."""
    labels = [" ".join(row) for row in sheet.rows]
    count = len(sheet.columns)
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unitsphere", "font.size": 9}):
        size = (2.6 * count + 2, 0.32 * len(labels) + 1)
        figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False, layout="constrained")
        for i, (axis, column) in enumerate(zip(axes[0], sheet.columns, strict=True)):
            cells = [cells[i] for cells in sheet.rows.values()]
            scale = 1 if cells[0].metric.endswith(SCALED) else 100
            for y, cell in enumerate(cells):
                if cell.mean is not None:
                    axis.errorbar(scale * cell.mean, y, xerr=scale * (cell.sd or 0), fmt="o", color="C0", capsize=3)
            axis.set_title(column)
            axis.set_yticks(range(len(labels)), labels)
            axis.grid(axis="x", alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].invert_yaxis()
        drawn = io.StringIO()
        figure.savefig(
            drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        plt.close(figure)
    svg = drawn.getvalue().replace("#000000", "currentColor").replace("#b0b0b0", "currentColor")
    return svg[svg.index("<svg") :]
