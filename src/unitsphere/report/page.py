"""A table as a page, with a picture of its means."""

import html

from unitsphere.report import render
from unitsphere.report.html import document, panels, paragraph, section, svg, table
from unitsphere.report.sheet import Sheet
from unitsphere.report.table import SCALED


def page(sheet: Sheet, title: str) -> str:
    """The page's text."""
    return document(title, parts(sheet))


def parts(sheet: Sheet) -> list[str]:
    """What the page consists of: the table, its picture, the differences, the notes."""
    place = {0: "", 1: "first", 2: "second"}
    rows = [
        [(value, "row") for value in row] + [(render.number(cell), place[cell.place]) for cell in cells]
        for row, cells in sheet.rows.items()
    ]
    found = [paragraph(f"{render.caption(sheet)}. Click a heading to sort.")]
    found.append(table([*((h, "row") for h in sheet.headings), *((c, "") for c in sheet.columns)], rows))
    found.append(picture(sheet))
    if sheet.baseline is not None:
        headings = [("", "row"), ("metric", "row"), *((h, "") for h in render.DIFFERENCE)]
        compared = [[(v, "row" if i < 2 else "") for i, v in enumerate(line)] for line in render.differences(sheet)]
        found.append(section(f"Differences from {render.against(sheet)}", table(headings, compared)))
    found.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in sheet.notes)}</ul>")
    return found


def picture(sheet: Sheet) -> str:
    """Means with one standard deviation, a panel a column."""
    labels, count = [" ".join(row) for row in sheet.rows], len(sheet.columns)
    figure, axes = panels(1, count, (2.6 * count + 2, 0.32 * len(labels) + 1), sharey=True)
    for i, (axis, column) in enumerate(zip(axes[0], sheet.columns, strict=True)):
        cells = [cells[i] for cells in sheet.rows.values()]
        scale = 1 if cells[0].metric.endswith(SCALED) else 100
        for y, cell in enumerate(cells):
            if cell.mean is not None:
                axis.errorbar(scale * cell.mean, y, xerr=scale * (cell.sd or 0), fmt="o", color="C0", capsize=3)
        axis.set_title(column)
        axis.set_yticks(range(len(labels)), labels)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    return svg(figure)
