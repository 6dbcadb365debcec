"""A sheet as terminal output, Markdown, LaTeX (booktabs) and CSV."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from unitsphere.report.sheet import Cell, Sheet
from unitsphere.report.significance import Difference
from unitsphere.report.table import shown

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
NOTE = "x 100 but for geometry; mean ± sd (number of seeds); best bold, second underlined"
DIFFERENCE = ("difference", "95% interval", "p, items", "p, seeds", "effect, seeds")


def number(cell: Cell) -> str:
    """`54.90 ± 0.45 (3)`."""
    if cell.mean is None:
        return "-"
    spread = "" if cell.sd is None else f" ± {shown(cell.metric, cell.sd)} ({len(cell.runs)})"
    return shown(cell.metric, cell.mean) + spread


def differences(sheet: Sheet) -> list[tuple[str, ...]]:
    """One line a cell that was compared: its row, its column, and what `DIFFERENCE` names."""
    compared: list[tuple[str, ...]] = []
    for row, cells in sheet.rows.items():
        for column, cell in zip(sheet.columns, cells, strict=True):
            d = cell.difference
            if d is not None:
                effect = "-" if d.effect is None else f"{d.effect:.2f}"
                tests = (interval(cell.metric, d), probability(d.p_items), probability(d.p_seeds), effect)
                compared.append((" ".join(row), column, shown(cell.metric, d.value, "+"), *tests))
    return compared


def interval(metric: str, difference: Difference) -> str:
    """`+0.51 to +4.20`."""
    if difference.low is None:
        return "-"
    return f"{shown(metric, difference.low, '+')} to {shown(metric, difference.high, '+')}"


def probability(p: float | None) -> str:
    """`0.012`."""
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def lines(headings: Sequence[str], left: int, rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, its first `left` columns ranged left."""
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return [f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in (headings, rule, *rows)]


def against(sheet: Sheet) -> str:
    """What the differences are from."""
    return (
        "the untrained model"
        if sheet.baseline == "before"
        else " ".join((*(sheet.baseline or ()), *(sheet.baseline_column or ())))
    )


def caption(sheet: Sheet) -> str:
    """What the numbers are, with the metrics that no column names."""
    metrics = dict.fromkeys(cell.metric.removeprefix("test/") for cells in sheet.rows.values() for cell in cells)
    unnamed = [metric for metric in metrics if metric not in sheet.columns]
    return f"{', '.join(unnamed)}: {NOTE}" if unnamed else NOTE


def terminal(sheet: Sheet) -> Group:
    """For the screen."""
    table = Table(title=caption(sheet), title_justify="left")
    for heading in sheet.headings:
        table.add_column(heading)
    for column in sheet.columns:
        table.add_column(column, justify="right")
    style = {0: "", 1: "bold", 2: "underline"}
    for row, cells in sheet.rows.items():
        table.add_row(*row, *(Text(number(cell), style=style[cell.place]) for cell in cells))
    parts: list[Table | Text] = [table]
    if sheet.baseline is not None:
        compared = Table(title=f"differences from {against(sheet)}", title_justify="left")
        for heading in ("", "metric", *DIFFERENCE):
            compared.add_column(heading, justify="left" if heading in ("", "metric") else "right")
        for line in differences(sheet):
            compared.add_row(*line)
        parts.append(compared)
    return Group(*parts, *(Text(f"note: {note}") for note in sheet.notes))


def markdown(sheet: Sheet) -> str:
    """For a README."""
    mark: dict[int, Callable[[str], str]] = {0: str, 1: "**{}**".format, 2: "<u>{}</u>".format}

    body = [(*row, *(mark[cell.place](number(cell)) for cell in cells)) for row, cells in sheet.rows.items()]
    text = [f"{caption(sheet)}.", "", *lines((*sheet.headings, *sheet.columns), len(sheet.headings), body)]
    if sheet.baseline is not None:
        text += ["", f"Differences from {against(sheet)}:", ""]
        text += lines(("", "metric", *DIFFERENCE), 2, differences(sheet))
    if sheet.notes:
        text += ["", *(f"- {note}" for note in sheet.notes)]
    return "\n".join(text) + "\n"


def latex(sheet: Sheet) -> str:
    """A booktabs tabular; the notes are comments."""
    mark: dict[int, Callable[[str], str]] = {0: str, 1: r"\textbf{{{}}}".format, 2: r"\underline{{{}}}".format}

    def escaped(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    def of(cell: Cell) -> str:
        mean, _, spread = number(cell).partition(" ± ")
        if mean.startswith("-") and len(mean) > 1:
            mean = f"$-${mean[1:]}"
        return mark[cell.place](mean) + (f" $\\pm$ {spread}" if spread else "")

    rows = [
        " & ".join([*map(escaped, row), *(of(cell) for cell in cells)]) + r" \\" for row, cells in sheet.rows.items()
    ]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            *(f"% {note}" for note in (caption(sheet), *sheet.notes)),
            rf"\begin{{tabular}}{{{'l' * len(sheet.headings)}{'r' * len(sheet.columns)}}}",
            r"\toprule",
            " & ".join(map(escaped, (*sheet.headings, *sheet.columns))) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def csv(sheet: Sheet) -> str:
    """One line a cell, raw values, with seeds and run folders."""
    of_cells: list[Mapping[str, object]] = []
    for row, cells in sheet.rows.items():
        for column, cell in zip(sheet.columns, cells, strict=True):
            d = cell.difference
            of_cells.append(
                dict(zip(sheet.headings, row, strict=True))
                | {"column": column, "metric": cell.metric, "mean": cell.mean, "sd": cell.sd, "n": len(cell.runs)}
                | {"seeds": " ".join(str(r.seed) for r in cell.runs)}
                | ({} if d is None else {"difference": d.value, "low": d.low, "high": d.high})
                | ({} if d is None else {"p_items": d.p_items, "p_seeds": d.p_seeds, "effect": d.effect})
                | {"runs": " ".join(str(r.folder) for r in cell.runs)}
            )
    return pd.DataFrame(of_cells).to_csv(index=False)
