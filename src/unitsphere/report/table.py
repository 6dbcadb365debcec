"""A run's before, best and last on test, side by side."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 1000  # characters of a line that no terminal has to show
SCALED = ("alignment", "uniformity", "effective_rank", "mean_cosine")  # not shares: shown as they are


def before_after(metrics: Mapping[str, float], best_step: int, steps: int) -> Table:
    """Stored raw (0.7888), shown x 100 (78.88), but for geometry. The difference is best minus before.

    Args:
        metrics: `before/…`, `test/…` (the chosen checkpoint) and `last/…`.
        best_step: The step of the chosen checkpoint; 0 is the untrained model.
        steps: The last step.
    """
    table = Table(title="on test", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for heading in ("before", f"best\nstep {best_step}", "best -\nbefore", f"last\nstep {steps}"):
        table.add_column(heading, justify="right")
    for name, before, best, difference, last in compared(metrics):
        table.add_row(name, shown(name, before), shown(name, best), shown(name, difference, "+"), shown(name, last))
    return table


def compared(
    metrics: Mapping[str, float],
) -> Iterator[tuple[str, float | None, float | None, float | None, float | None]]:
    """(name, before, best, best - before, last) of each metric that was measured on test; None for what was not."""
    names = dict.fromkeys(k.partition("/")[2] for k in metrics if k.startswith(("before/", "test/")))
    for name in names:
        before, best, last = (metrics.get(f"{stage}/{name}") for stage in ("before", "test", "last"))
        yield name, before, best, None if before is None or best is None else best - before, last


def scores(metrics: Mapping[str, float], split: str) -> Table:
    """One model's metrics on a split."""
    table = Table("metric")
    table.add_column(split, justify="right")
    for name, value in metrics.items():
        table.add_row(name, shown(name, value))
    return table


def stages(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The stages of a chain side by side: the first one's untrained model, then the chosen checkpoint of each.

    Args:
        metrics: Stage -> its run's metrics.
    """
    first = next(iter(metrics.values()))
    columns = {"untrained": ("before/", first)} | {stage: ("test/", of_stage) for stage, of_stage in metrics.items()}
    on_test = {
        heading: {name.removeprefix(prefix): value for name, value in of_stage.items() if name.startswith(prefix)}
        for heading, (prefix, of_stage) in columns.items()
    }
    names = dict.fromkeys(name for heading in metrics for name in on_test[heading])
    return side_by_side({heading: {n: of[n] for n in names if n in of} for heading, of in on_test.items()}, "on test")


def side_by_side(metrics: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """Metrics by column: heading -> name -> value; a column may lack some."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for heading in metrics:
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(name for of_column in metrics.values() for name in of_column):
        table.add_row(name, *(shown(name, of_column.get(name)) for of_column in metrics.values()))
    return table


def shown(name: str, value: float | None, sign: str = "") -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if name.endswith(SCALED) else f"{100 * value:{sign}.2f}"


def show(renderable: Any) -> None:
    """Print to the terminal, or as plain text where there is none: there a table is as wide as it needs to be. A
    sentence is not broken, so paths stay whole."""
    console = Console(markup=False)
    if not console.is_terminal and not isinstance(renderable, str):
        console.width = max(
            console.width, console.measure(renderable, options=console.options.update(width=WIDE)).maximum
        )
    console.print(renderable, soft_wrap=isinstance(renderable, str))
