"""Turns of several contenders as medians, spreads and ratios."""

import pandas as pd
from rich.table import Table

from unitsphere.report import render
from unitsphere.runs import Run, write

FLOPS, MOST, MFU = "FLOP/s", "peak FLOP/s", "MFU %"


def summary(turns: pd.DataFrame, baseline: str, primary: str) -> pd.DataFrame:
    """One row a contender: the median of each number over rounds; the least and the most of the primary one; and the
    median over rounds of its ratio to the baseline's in the same round.

    MFU is against the fastest multiplication of any turn, of the same precision: what the machine can do when nothing
    else runs on it.

    Args:
        turns: One row a turn: round, contender, numbers.
        baseline: A contender.
        primary: The number that is compared.
    """
    turns = turns.copy()
    if FLOPS in turns:
        turns[MFU] = 100 * turns[FLOPS] / turns.groupby("dtype")[MOST].transform("max")
    base = turns[turns["contender"] == baseline].set_index("round")[primary]
    turns["x"] = turns[primary] / turns["round"].map(base)
    names = list(dict.fromkeys(turns["contender"]))
    numbers = [c for c in turns.columns if c not in ("round", "contender", "dtype")]
    grouped = turns.groupby("contender")
    table = grouped[numbers].median().loc[names]
    after = numbers.index(primary) + 1
    table.insert(after, "from", grouped[primary].min())
    table.insert(after + 1, "to", grouped[primary].max())
    return table


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as a person reads them: a column a contender."""
    shown = table.drop(columns=[c for c in (FLOPS, MOST) if c in table])
    rows = [[str(name), *map(number, values)] for name, values in shown.T.iterrows()]
    return ["", *map(str, table.index)], rows


def number(value: float) -> str:
    """With three or four figures; `-` where there is none."""
    if pd.isna(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def terminal(table: pd.DataFrame, what: str) -> Table:
    """For the screen."""
    headings, rows = cells(table)
    shown = Table(
        title=f"{what}: medians over rounds; x is the ratio to the baseline in the same round", title_justify="left"
    )
    for heading in headings:
        shown.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


def save(run: Run, table: pd.DataFrame) -> None:
    """Write bench.md and bench.csv, and the medians into metrics.json."""
    headings, rows = cells(table)
    write(run.folder / "bench.md", "\n".join(render.lines(headings, 1, rows)) + "\n")
    write(run.folder / "bench.csv", table.to_csv())
    run.add_metrics(
        {f"{name}/{column}": float(v) for name, row in table.iterrows() for column, v in row.items() if not pd.isna(v)}
    )
