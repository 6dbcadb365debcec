"""The queries and pairs on which model B loses most against model A: shown as text, and kept as a set."""

from collections.abc import Sequence
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from unitsphere.errors import UsageError
from unitsphere.report.comparison import Comparison, Line
from unitsphere.report.records import Record
from unitsphere.report.table import shown
from unitsphere.types import RetrievalSet

CUT = 200  # characters shown of a text


def worst(made: Comparison, count: int) -> dict[str, tuple[Line, np.ndarray]]:
    """Task -> its line and the positions of at most `count` items, those on which B loses most first. Tasks on which it
    loses none are not there; a mean of several tasks is none itself."""
    found: dict[str, tuple[Line, np.ndarray]] = {}
    for line in (line for line in made.lines if len(line.tasks) == 1 and line.tasks[0] not in found):
        order = np.argsort(line.gains, kind="stable")[:count]
        if (lost := order[line.gains[order] < 0]).size:
            found[line.tasks[0]] = line, lost
    return found


def items(record: Record, stage: str, task: str, at: np.ndarray) -> pd.DataFrame:
    """Some rows of scores/<stage>/<task>.parquet."""
    return pd.read_parquet(record.folder / "scores" / stage / f"{task}.parquet").iloc[at]


def queries(line: Line, x: pd.DataFrame, y: pd.DataFrame, of: RetrievalSet) -> list[str]:
    """A few lines of text for each lost query: what it asks, what it should find, and where both models have it.

    Args:
        line: The metric.
        x, y: The queries' rows, of A and of B.
        of: Has the texts.

    Raises:
        UsageError: The rows were written before ranks were kept.
    """
    if "found" not in x or "found" not in y:
        raise UsageError("one of the two was scored before ranks were kept: score it again with unitsphere evaluate.")
    measure = line.metric.rpartition("/")[2]
    text = []
    for number, (a, b) in enumerate(zip(_rows(x), _rows(y), strict=True), 1):
        right = next(d for d, grade in of.qrels[b["query"]].items() if grade >= 1)
        text += [
            f"{number}. {_cut(of.queries[b['query']])}  ({b['query']}; {measure} "
            f"{shown(line.metric, a[measure])} -> {shown(line.metric, b[measure])})",
            f"   looks for, rank {_rank(a['rank'])} -> {_rank(b['rank'])}: {_cut(of.corpus[right])}",
            f"   A's first wrong one: {_cut(of.corpus.get(a['found'], '-'))}",
            f"   B's first wrong one: {_cut(of.corpus.get(b['found'], '-'))}",
        ]
    return text


def pairs(x: pd.DataFrame, y: pd.DataFrame) -> list[str]:
    """The same for scored pairs: the gold score and both cosines."""
    text = []
    for number, (a, b) in enumerate(zip(_rows(x), _rows(y), strict=True), 1):
        cosines = f"cosine {a['prediction']:.3f} -> {b['prediction']:.3f}"
        text += [
            f"{number}. score {a['score']:g}, {cosines}",
            *(f"   {_cut(a[side])}" for side in ("sentence1", "sentence2")),
        ]
    return text


def texts(line: Line, x: pd.DataFrame, y: pd.DataFrame) -> list[str]:
    """The same for items that have their texts themselves: labelled texts and pairs, sentences and translations."""
    measure = line.metric.rpartition("/")[2]
    text = []
    for number, (a, b) in enumerate(zip(_rows(x), _rows(y), strict=True), 1):
        read = [_cut(b[side]) for side in ("query", "sentence1", "sentence2") if isinstance(b.get(side), str)]
        said = [f"{name} {b[name]}" for name in ("gold", "label") if name in b]
        said += [f"predicted {a['predicted']} -> {b['predicted']}"] if "predicted" in b else []
        said += [f"cosine {a['prediction']:.3f} -> {b['prediction']:.3f}"] if "prediction" in b else []
        said += [f"{measure} {shown(line.metric, a[measure])} -> {shown(line.metric, b[measure])}"]
        text += [f"{number}. {', '.join(said)}", *(f"   {one}" for one in read)]
    return text


def searched(sets: Sequence[RetrievalSet], task: str, x: pd.DataFrame) -> RetrievalSet | None:
    """The set that a task has searched: `scifact` of the tasks scifact-bm25 and scifact_bad; None where none has its
    queries.

    Args:
        sets: Those that may be it.
        task: Its name begins with the set's.
        x: Rows of the task's items.
    """
    fitting = [of for of in sets if task.startswith(of.name) and set(x["query"]) <= of.queries.keys()]
    return max(fitting, key=lambda of: len(of.name), default=None)


def bad_set(of: RetrievalSet, x: pd.DataFrame) -> RetrievalSet:
    """The set with these queries only, against all of its documents.

    Raises:
        UsageError: Its texts have instructions of their own, for which a folder has no place.
    """
    if of.instructions:
        raise UsageError(f"save=: the texts of {of.name} have instructions of their own, which a kept set would lose.")
    chosen = x["query"].tolist()
    return RetrievalSet(
        of.name, of.corpus, {q: of.queries[q] for q in chosen}, {q: of.qrels[q] for q in chosen}, of.max_length
    )


def _rows(table: pd.DataFrame) -> list[Any]:
    return table.to_dict("records")


def _cut(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= CUT else f"{words[:CUT]}…"


def _rank(value: float) -> str:
    return "-" if isnan(value) else f"{value:.0f}"
