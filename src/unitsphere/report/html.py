"""What all pages share: one self-contained document without network, tables that sort, figures, light and dark."""

import html
import io
import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

Cell = tuple[str, str]  # text and CSS class

WIDE = (  # fonts with Chinese characters, of the usual systems
    *("Noto Sans CJK SC", "Noto Sans SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei"),
)
FONTS = ["DejaVu Sans", *sorted({*WIDE} & {*font_manager.get_font_names()}, key=WIDE.index)]
matplotlib.rcParams["font.family"] = FONTS  # each text of a figure takes it when it is made
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # not every font has every weight

STYLE = """
:root { color-scheme: light dark; --line: #8884; --query: #2563eb; --document: #d97706; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } p, li { max-width: 48rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.row, td.row, td.text { text-align: left; } td.text { white-space: normal; min-width: 14rem; vertical-align: top; }
th { cursor: pointer; } th::after { content: " ↕"; opacity: .4; }
.first { font-weight: 700; } .second { text-decoration: underline; } li, .quiet { opacity: .8; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem; } .beside figure { flex: 1 1 20rem; margin: 0; }
svg { max-width: 100%; height: auto; color: CanvasText; fill: currentColor; } a { color: inherit; }
.key { columns: 18rem; list-style: none; padding: 0; } .key svg { vertical-align: -.1em; }
.query { fill: var(--query); } .document { fill: var(--document); } circle { opacity: .65; }
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


def document(title: str, parts: Sequence[str]) -> str:
    """A page's text.

    Args:
        title: Plain text, also its first heading.
        parts: HTML.
    """
    heading = html.escape(title)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{STYLE}</style><body><h1>{heading}</h1>{''.join(parts)}"
        f"<script>{SORT}</script></body></html>\n"
    )


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def section(heading: str, *parts: str) -> str:
    """Parts below a heading; nothing where all of them are empty."""
    return f"<h2>{html.escape(heading)}</h2>{''.join(parts)}" if any(parts) else ""


def beside(figures: Iterable[str]) -> str:
    """Figures in a row that wraps; nothing where there are none."""
    drawn = "".join(f"<figure>{figure}</figure>" for figure in figures)
    return f'<div class="beside">{drawn}</div>' if drawn else ""


def table(headings: Sequence[Cell], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that sorts by a click on a heading. A cell of the class `link` is a relative address."""

    def cell(tag: str, text: str, kind: str) -> str:
        shown = html.escape(text)
        if kind == "link":
            shown = f'<a href="{shown}">{shown.split("/")[0]}</a>'
        return f'<{tag} class="{kind}">{shown}</{tag}>'

    def line(tag: str, cells: Sequence[Cell]) -> str:
        return "<tr>" + "".join(cell(tag, text, kind) for text, kind in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', headings)}</thead><tbody>{body}</tbody></table>"


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes (rows, columns)."""
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legible(text: str) -> bool:
    """Whether the fonts of figures can write a text; what they cannot they draw as boxes."""
    return all(character.isspace() or ord(character) in _characters() for character in text)


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    return frozenset(code for font in FONTS for code in FT2Font(font_manager.findfont(font)).get_charmap())


def svg(figure: Figure) -> str:
    """A figure as inline SVG in the page's own colours; equal figures give equal text."""
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unitsphere"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    text = drawn.getvalue().replace("#000000", "currentColor").replace("#b0b0b0", "currentColor")
    return text[text.index("<svg") :]
