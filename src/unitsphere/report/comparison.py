"""Two models, query by query and pair by pair: what `unitsphere compare` prints.

Statistics are those of significance.py, which tables share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import numpy as np
import pandas as pd

from unitsphere.errors import UsageError
from unitsphere.report import comparability
from unitsphere.report.records import Record
from unitsphere.report.render import interval, lines, probability
from unitsphere.report.significance import Difference, difference, holm, randomisation, same_items, scores
from unitsphere.report.table import shown

ALPHA = 0.05
HEADINGS = ("metric", "A", "B", "B - A", "95% interval", "p", "p, Holm", "won", "tied", "lost")

Tasks = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Line:
    """One metric of two models.

    Attributes:
        metric: `<task>/<measure>`.
        a, b: The two values.
        difference: b - a, with its interval and p from the paired bootstrap.
        p: Of the paired randomisation test.
        gains: Of each item, what B gains on A (see `gains`); the tasks of a mean one after the other.
        tasks: The files in scores/ that it is made of.
        adjusted: `p` after Holm, over the lines of one comparison.
    """

    metric: str
    a: float
    b: float
    difference: Difference
    p: float
    gains: np.ndarray
    tasks: tuple[str, ...]
    adjusted: float = 1.0

    @property
    def worse(self) -> bool:
        """Whether B is significantly worse, after Holm."""
        return self.difference.value < 0 and self.adjusted < ALPHA

    @property
    def counts(self) -> tuple[int, int, int]:
        """Items won, tied and lost by B."""
        return tuple(int((np.sign(self.gains) == sign).sum()) for sign in (1, 0, -1))  # type: ignore[return-value]


@dataclass(frozen=True)
class Comparison:
    """Lines in the order of the metrics, and what a reader must know."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def compare(
    a: Record, b: Record, stages: tuple[str, str] = ("test", "test"), metrics: Sequence[str] = (), mix: bool = False
) -> Comparison:
    """Compare two models on every metric for which both have scores by query or pair.

    Args:
        a, b: Two runs or evaluations; or one run at two stages.
        stages: Which scores of each: before, test, last or dev.
        metrics: Names or patterns, `scifact/*`; empty takes the first metric of every task, and of STS all of them.
        mix: Allow models that were measured in different ways.

    Raises:
        UsageError: There is nothing to compare, scores are missing on one side, or the two were not scored on the same
            queries and documents.
    """
    named = [
        {name.removeprefix(f"{stage}/") for name in of.metrics if name.startswith(f"{stage}/")}
        for of, stage in zip((a, b), stages, strict=True)
    ]
    for of, stage, names in zip((a, b), stages, named, strict=True):
        if not names:
            there = dict.fromkeys(name.partition("/")[0] for name in of.metrics)
            raise UsageError(f"{of.folder} has no scores of {stage}; stage={' or '.join(there)} would fit.")
    both = [n for k in a.metrics if k.startswith(f"{stages[0]}/") and (n := k.partition("/")[2]) in named[1]]
    if metrics:
        both = [name for name in both if any(fnmatch(name, pattern) for pattern in metrics)]
    if not both:
        raise UsageError(
            f"these two have no metric{' ' + ', '.join(metrics) if metrics else ''} in common: "
            f"{a.folder} has {', '.join(sorted(named[0]))}; {b.folder} has {', '.join(sorted(named[1]))}"
        )
    if not mix:
        comparability.refuse_mixed_protocols([a, b], [f"{stages[0]}/{name}" for name in both])
    found: dict[tuple[str, ...], list[Line]] = {}
    without = []
    for name in both:
        x, y = scores(a, f"{stages[0]}/{name}"), scores(b, f"{stages[1]}/{name}")
        if not x and not y:
            without.append(name)
            continue
        for items, of, stage in ((x, a, stages[0]), (y, b, stages[1])):
            if not items:
                raise UsageError(f"{of.folder}/scores/{stage} has no scores by query or pair of {name}.")
        _refuse_other_items(name, x, y)
        found.setdefault(tuple(x), []).append(_line(name, a, b, stages, x, y))
    if not found:
        raise UsageError(f"neither has scores by query or pair of {', '.join(without)}: there is nothing to test.")
    chosen = [line for of_task in found.values() for line in (of_task if metrics else of_task[:1])]
    adjusted = holm([line.p for line in chosen])
    made = tuple(replace(line, adjusted=p) for line, p in zip(chosen, adjusted, strict=True))
    return Comparison(made, tuple(_notes(a, b, made, without)))


def gains(x: pd.DataFrame, y: pd.DataFrame) -> np.ndarray:
    """What B gains on A, item by item: the difference of the measure; or, of ranked pairs, how much nearer the rank of
    the prediction comes to the rank of the gold score."""
    if x.shape[1] == 1:
        return (y - x).to_numpy()[:, 0]
    off = [(items["prediction"] - items["score"]).abs().to_numpy() for items in (x, y)]
    return off[0] - off[1]


def _line(name: str, a: Record, b: Record, stages: tuple[str, str], x: Tasks, y: Tasks) -> Line:
    first, second = (f"{stage}/{name}" for stage in stages)
    return Line(
        name,
        a.metrics[first],
        b.metrics[second],
        difference([a], [b], first, second),
        randomisation(a, b, first, second),
        np.concatenate([gains(x[task], y[task]) for task in x]),
        tuple(x),
    )


def _refuse_other_items(name: str, x: Tasks, y: Tasks) -> None:
    if same_items([x, y]):
        return
    if x.keys() != y.keys():
        raise UsageError(f"{name} is not made of the same tasks: {', '.join(x)} and {', '.join(y)}.")
    task = next(task for task in x if not x[task].index.equals(y[task].index))
    first, second = x[task].index, y[task].index
    alone = {"A": first.difference(second), "B": second.difference(first)}
    named = [f"{own[0]} only in {side}" for side, own in alone.items() if len(own) and isinstance(own[0], str)]
    raise UsageError(
        f"A and B were not scored on the same items of {task}: {len(first)} and {len(second)} in the order of their "
        f"scores{''.join(f', {what}' for what in named)}. Score one of them again on the data of the other."
    )


def _notes(a: Record, b: Record, made: Sequence[Line], without: Sequence[str]) -> list[str]:
    notes = []
    if all(line.difference.value == 0 and not line.gains.any() for line in made):
        notes.append("A and B are equal on every item")
    keys = comparability.differing([a, b])
    if keys:
        notes.append("B differs in " + ", ".join(f"{k}={b.setting(k)} (A: {a.setting(k)})" for k in keys))
    facts = [comparability.facts(r) for r in (a, b)]
    unequal = [k for k in facts[0] if k in facts[1] and facts[0][k] != facts[1][k]]
    notes += [f"{key} is not the same: {facts[0][key]} and {facts[1][key]}" for key in unequal]
    if without:
        notes.append(f"not tested, having no scores by query or pair: {', '.join(without)}")
    return notes


def cells(line: Line) -> tuple[str, ...]:
    """A line as `HEADINGS` name it."""
    values = (shown(line.metric, line.a), shown(line.metric, line.b), shown(line.metric, line.difference.value, "+"))
    tests = (interval(line.metric, line.difference), probability(line.p), probability(line.adjusted))
    return (line.metric, *values, *tests, *map(str, line.counts))


def explained(made: Comparison) -> str:
    """What the columns are."""
    several = f"; Holm: over the {len(made.lines)} tests of this table" if len(made.lines) > 1 else ""
    return f"x 100; 95% interval: paired bootstrap; p: paired randomisation test{several}; won, tied, lost: by B"


def markdown(made: Comparison, a: Record, b: Record) -> str:
    """For a README."""
    head = [f"A: {a.folder}", "", f"B: {b.folder}", "", f"{explained(made)}.", ""]
    body = lines(HEADINGS, 1, [cells(line) for line in made.lines])
    return "\n".join([*head, *body, "", *(f"- {note}" for note in made.notes)]) + "\n"


def csv(made: Comparison) -> str:
    """One line a metric, raw values."""
    rows = [
        {"metric": line.metric, "a": line.a, "b": line.b, "difference": line.difference.value}
        | {"low": line.difference.low, "high": line.difference.high, "p_bootstrap": line.difference.p_items}
        | {"p": line.p, "p_holm": line.adjusted}
        | dict(zip(("won", "tied", "lost"), line.counts, strict=True))
        for line in made.lines
    ]
    return pd.DataFrame(rows).to_csv(index=False)
