"""Texts with labels, for the probes: out of the user's files, or of what the configuration names instead."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records


def read(path: str, columns: Mapping[str, Any], option: str) -> pd.DataFrame:
    """A file, folder or hub data set (see `formats.records`) as a table of texts: the columns' keys, one row a record.

    Args:
        path: Where; a relative path that is not there is looked for in `UNITSPHERE_DATA`.
        columns: Name in the table -> the source's column.
        option: The key of the configuration that named it, for messages.

    Raises:
        UsageError: It is not there, it is empty, or a row lacks a column.
    """
    base = paths.data()
    there = base / path if base is not None and not Path(path).expanduser().exists() else None
    source = str(there) if there is not None and there.exists() else path
    header = not any(isinstance(column, int) for column in columns.values())
    rows = []
    try:
        for number, record in records(source, header):
            if isinstance(record, BadRow):
                raise UsageError(f"{source}, row {number}: {record}.")
            lacking = [column for column in columns.values() if record.get(column) in (None, "")]
            if lacking:
                found = ", ".join(map(str, record))
                raise UsageError(
                    f"{source}, row {number}: column {lacking[0]!r} is missing or empty; found: {found}. "
                    f"Name the columns with {option.rpartition('.')[0]}.columns"
                )
            rows.append({name: str(record[column]) for name, column in columns.items()})
    except UsageError as error:
        raise UsageError(f"{option}={path}: {error}") from None
    if not rows:
        raise UsageError(f"{option}={path}: it has no row.")
    return pd.DataFrame(rows)


def texts_of(
    split: str,
    files: Mapping[str, str | None],
    otherwise: Callable[[str], pd.DataFrame],
    columns: Mapping[str, Any],
    option: str,
    max_rows: int | None,
) -> pd.DataFrame:
    """The labelled texts of a split: columns text and label.

    Args:
        split: "dev" or "test".
        files: Split -> file. Where dev has none, it is a fifth of train's texts, by their hash.
        otherwise: Split -> table, where no file is given.
        columns: "text" and "label" -> the file's columns.
        option: The evaluator's name in the configuration.
        max_rows: At most so many rows, those with the smallest hash of their text; None is all.

    Raises:
        UsageError: The split has no file, or fewer than two labels are left.
    """
    if not any(files.values()):
        table, source = otherwise(split), "the docstrings"
    elif files.get(split):
        source = str(files[split])
        table = read(source, columns, f"eval.{option}.files.{split}")
    elif split == "dev" and files.get("train"):
        source = str(files["train"])
        table = read(source, columns, f"eval.{option}.files.train")
        table = table[share(table.text) < 0.2]
    else:
        raise UsageError(f"eval.{option}.files.{split} is not set: a file with a text and a label a row would fit.")
    return some(table, source, max_rows)


def some(table: pd.DataFrame, source: str, max_rows: int | None = None) -> pd.DataFrame:
    """Each text once, with the label of its first row, at most `max_rows`.

    Raises:
        UsageError: They have fewer than two labels.
    """
    table = table.drop_duplicates("text", ignore_index=True)
    if max_rows is not None:
        table = table.iloc[np.sort(np.argsort(share(table.text), kind="stable")[:max_rows])]
    if table.label.nunique() < 2:
        raise UsageError(f"{source}: its {len(table)} texts have {table.label.nunique()} labels; two are needed.")
    return table.reset_index(drop=True)


def fingerprint(*tables: pd.DataFrame) -> str:
    """16 digits of the SHA-256 over the rows of tables of texts: two evaluations know by it whether they read the
    same."""
    rows = repr([table.values.tolist() for table in tables])
    return hashlib.sha256(rows.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def share(texts: Iterable[str]) -> np.ndarray:
    """(N): for each text a number in [0, 1) that its SHA-256 decides, so that every run divides texts alike."""
    drawn = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts]
    return np.array([int.from_bytes(number, "big") / 2**64 for number in drawn])
