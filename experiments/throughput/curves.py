"""Draw what a sample costs against what it depends on, from the rounds.csv of `unitsphere bench`.

    python experiments/throughput/curves.py OUT.png "batch:batch.csv,cached.csv" "tokens of a text:length.csv" …

A panel for each argument but the first: its label, then the files whose lines it has. Contenders are named by the
number on the x axis (`variant.256.data.batch_size=256`); `unitsphere` is left out.
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator


def main() -> None:
    out, *panels = sys.argv[1:]
    figure = Figure(figsize=(4.6 * len(panels), 6.4), layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        label, files = panel.split(":")
        for file in files.split(","):
            turns = pd.read_csv(file, dtype={"contender": str})
            table = turns[turns["contender"].str.isdigit()].groupby("contender").median(numeric_only=True)
            table.index = table.index.astype(int)
            table = table.sort_index()
            name = Path(file).stem
            training = "samples/s" in table
            grid[0][column].plot(
                table.index, 1000 / table["samples/s"] if training else table["seconds"], marker="o", label=name
            )
            grid[1][column].plot(table.index, table["peak MiB"], marker="o", label=name)
        for axes, what in zip(grid[:, column], ("ms a sample" if training else "seconds", "peak MiB"), strict=True):
            numbers = sorted({int(x) for line in axes.lines for x in line.get_xdata()})
            highest = max(max(line.get_ydata()) for line in axes.lines)
            axes.set(xscale="log", xlabel=label, ylabel=what, ylim=(0, 1.08 * highest))
            axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
        grid[0][column].legend()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
