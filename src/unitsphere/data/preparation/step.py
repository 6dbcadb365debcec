"""Preparation of training rows: named steps in the order given, each counted in the same way.

A step sees the training rows alone; what is scored, on dev and on test, stays as it was written.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from unitsphere.data.rows import COLUMNS, Rows
from unitsphere.errors import UsageError


class Step(Protocol):
    """Rows to rows, and for each of the new rows the number of the old one that it was made of.

    `gives` names columns that the step writes, which the data then need not have. Whatever is random in a step is
    drawn from `draw`, so that equal seeds give equal rows.
    """

    gives: tuple[str, ...]

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]: ...


class TextStep(ABC):
    """A step that looks at one text at a time, whatever column it is in.

    A row whose anchor or positive is dropped goes with it; a negative that is dropped leaves only itself. Equal texts
    are looked at once.
    """

    gives: tuple[str, ...] = ()

    @abstractmethod
    def text(self, text: str) -> str | None:
        """The text as it should be; None or "" drops it."""

    def __call__(self, rows: Rows, draw: np.random.Generator) -> tuple[Rows, Sequence[int]]:
        known: dict[str, str | None] = {}

        def made(text: str) -> str | None:
            if text not in known:
                known[text] = self.text(text)
            return known[text]

        columns: dict[str, Any] = {"anchor": [made(text) for text in rows.anchor]}
        if rows.positive is not None:
            columns["positive"] = [made(text) for text in rows.positive]
        kept = [i for i, texts in enumerate(zip(*columns.values(), strict=True)) if all(texts)]
        if rows.negative is not None:
            columns["negative"] = [[new for text in several if (new := made(text))] for several in rows.negative]
        return replace(rows, **columns).take(kept), kept


def prepare(rows: Rows, steps: Mapping[str, Step], seed: int) -> tuple[Rows, list[dict[str, Any]]]:
    """Apply steps one after another.

    Args:
        rows: Training rows.
        steps: Name -> step, in order.
        seed: Of what is random; a step's draws depend on it and on the step's name.

    Returns:
        The rows that are left, and for each step its name and numbers of rows: `rows` (read), `changed`, `dropped`,
        `added` (beyond the first that was made of a row) and `left`.

    Raises:
        UsageError: A step leaves no row, or rows that were on disk in memory.
    """
    report = []
    for name, step in steps.items():
        made, origins = step(rows, np.random.default_rng([seed, *name.encode()]))
        if not len(made):
            raise UsageError(
                f"preparation.{name} leaves none of {len(rows)} rows; make it less strict, or leave it out."
            )
        if rows.on_disk and not made.on_disk:
            raise UsageError(f"preparation.{name} reads all rows into memory; data.on_disk=false says so.")
        report.append({"step": name, **_counts(rows, made, origins)})
        rows = made
    return rows, report


def told(counts: Mapping[str, Any]) -> str:
    """One line of `prepare`'s report."""
    what = ", ".join(f"{counts[key]:,} {key}" for key in ("changed", "dropped", "added", "left"))
    return f"preparation.{counts['step']}: {counts['rows']:,} rows read, {what}"


def _counts(before: Rows, after: Rows, origins: Sequence[int]) -> dict[str, int]:
    first = {origin: i for i, origin in reversed(list(enumerate(origins)))}
    changed = sum(_row(before, origin) != _row(after, i) for origin, i in first.items())
    dropped, added = len(before) - len(first), len(after) - len(first)
    return {"rows": len(before), "changed": changed, "dropped": dropped, "added": added, "left": len(after)}


def _row(rows: Rows, i: int) -> list[Any]:
    return [column and column[i] for column in (getattr(rows, name) for name in COLUMNS)]
