"""The user's own data in one file or data set: texts, pairs, triplets, scored pairs, labelled texts. Which, `columns`
says."""

import hashlib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from math import isfinite, nan
from typing import Any, Literal

import numpy as np

from unitsphere import paths
from unitsphere.data.rows import Data, Rows, Splits
from unitsphere.errors import UsageError
from unitsphere.formats import on_disk
from unitsphere.formats.records import BadRow, records

MEND = ". Mend the row, or leave bad rows out with data.on_bad_row=skip"


class Table(Data):
    """Rows of a file, folder or hub data set.

    Where there are positives without scores and no files for dev and test, a tenth of the anchors (at most
    `held_out`) becomes each: the anchors whose SHA-256 is smallest, with all their rows, so that the same text is
    held out in every run.

    Args:
        path: See `formats.records.records`.
        columns: Column that a loss reads -> name of the source's column, a list of names for several negatives, or
            numbers where a csv or tsv has no header. A JSON list in `negative` is several negatives.
        dev_path: Rows that choose the checkpoint.
        test_path: Rows that report.
        held_out: The most anchors that dev and test each take from the training file.
        on_bad_row: "stop" at the first bad row, or "skip" and count it.
        max_score: Scores are divided by it, 5 for STS; None leaves them.
        instruction_format: How an instruction stands before its text: `{}` is the instruction.
        on_disk: Leave the rows of `path` on disk, for more than memory holds: checked and copied into the cache once,
            then read and tokenised batch by batch. The same batches; in memory is a few dozen bytes a row. The files
            of dev and test are read into memory.
        name, batch_size, max_length, eval_max_length: As for every data set.
    """

    def __init__(
        self,
        path: str | None,
        columns: Mapping[str, Any],
        dev_path: str | None = None,
        test_path: str | None = None,
        held_out: int = 1000,
        on_bad_row: Literal["stop", "skip"] = "stop",
        name: str = "table",
        batch_size: int = 64,
        max_length: int = 64,
        eval_max_length: int | None = None,
        max_score: float | None = None,
        instruction_format: str = "{} ",
        on_disk: bool = False,
    ):
        super().__init__(name, columns, batch_size, max_length, eval_max_length)
        if path is None:
            raise UsageError("data.path is not set: a file, a dataset folder or a hub id, e.g. data.path=pairs.jsonl")
        if on_bad_row not in ("stop", "skip"):
            raise UsageError(f"data.on_bad_row={on_bad_row}: stop or skip would fit.")
        if "positive" not in columns and (dev_path or test_path):
            raise UsageError("data.dev_path and data.test_path need a positive column: texts alone have no queries.")
        self.path, self.dev_path, self.test_path = path, dev_path, test_path
        self.held_out, self.on_disk = held_out, on_disk
        self.on_bad_row = on_bad_row
        self.max_score, self.instruction_format = max_score, instruction_format

    def load(self) -> Splits:
        rows, skipped = self._on_disk(self.path) if self.on_disk else self._in_memory(self.path)
        if rows.positive is None:
            return Splits(rows, None, None, skipped)
        hashes = np.fromiter(map(_hash, rows.anchor), np.uint64, len(rows))
        left = np.unique(hashes)  # ascending
        count = 0 if rows.score is not None else min(self.held_out, len(left) // 10)  # scored pairs may not fit at all
        held = {}
        for split, path in {"dev": self.dev_path, "test": self.test_path}.items():
            if path is not None:
                held[split], bad = self._in_memory(path)
                skipped += bad
            else:
                mine, left = left[:count], left[count:]
                held[split] = rows.take(np.flatnonzero(np.isin(hashes, mine)))
        train = rows.take(np.flatnonzero(hashes >= left[0]))
        sets = {k: v.retrieval(self.name, self.eval_max_length) if len(v) else None for k, v in held.items()}
        return Splits(train, sets["dev"], sets["test"], skipped)

    def _in_memory(self, path: str) -> tuple[Rows, int]:
        taken: dict[str, list[Any]] = {column: [] for column in self.columns}
        bad: list[int] = []
        for values in self._values(path, bad):
            for column, value in zip(taken, values, strict=True):
                taken[column].append(value)
        return Rows(**taken), len(bad)

    def _on_disk(self, path: str) -> tuple[Rows, int]:
        settings = repr((self.columns, self.on_bad_row, self.max_score, self.instruction_format))
        folder = paths.cache() / "rows" / on_disk.name("table", on_disk.source(path), settings)
        if not folder.exists():
            bad: list[int] = []
            with on_disk.making(folder) as work:
                on_disk.write(work, self._values(path, bad))
                (work / "skipped").write_text(str(len(bad)))
        lines = on_disk.Lines(folder)
        columns: dict[str, Any] = {c: on_disk.Column(lines, place) for place, c in enumerate(self.columns)}
        return Rows(**columns), int((folder / "skipped").read_text())

    def _values(self, path: str, bad: list[int]) -> Iterator[list[Any]]:
        """The values of each row, in the order of `columns`; the numbers of rows left out go into `bad`."""
        header, empty = not any(isinstance(source, int) for source in self.columns.values()), True
        first = ""
        for number, record in records(path, header):
            try:
                if isinstance(record, BadRow):
                    raise record
                values = [_take(record, source, column) for column, source in self.columns.items()]
            except BadRow as fault:
                if self.on_bad_row == "stop":
                    skip = "" if isinstance(fault, NoColumn) and empty else MEND
                    raise UsageError(f"{path}, row {number}: {fault}{skip}") from None
                bad.append(number)
                first = first or f"row {number}: {fault}"
                continue
            empty = False
            yield [self._scaled(column, value) for column, value in zip(self.columns, values, strict=True)]
        if empty:
            raise UsageError(
                f"{path}: no usable row" + (f", {len(bad)} bad ones skipped; {first}" if bad else "; it is empty.")
            )

    def _scaled(self, column: str, value: Any) -> Any:
        if column == "score" and self.max_score is not None:
            return value / self.max_score
        return self.instruction_format.format(value) if column.endswith("_instruction") else value


class NoColumn(BadRow):
    """The row has no column of that name."""


def _take(record: Mapping[Any, Any], source: Any, column: str) -> Any:
    """One column's value out of a record; a list of texts for `negative`, a number for `score`, else a text."""
    if column == "negative":
        names = source if isinstance(source, list | tuple) else [source]
        values = [_value(record, name, column) for name in names]
        flat = [text for value in values for text in (value if isinstance(value, list) else [value])]
        return [_text(text, source) for text in flat]
    value = _value(record, source, column)
    if column == "score":
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = nan
        if not isfinite(number):
            raise BadRow(f"column {source!r} should hold a number, found {value!r}")
        return number
    return _text(str(value) if column == "label" and value is not None else value, source)


def _value(record: Mapping[Any, Any], name: Any, column: str) -> Any:
    if name not in record:
        found = ", ".join(map(str, record)) or "none"
        near = "".join(f"; did you mean {n!r}?" for n in get_close_matches(str(name), map(str, record), n=1))
        raise NoColumn(f"no column {name!r}{near}; found: {found}. Name it with data.columns.{column}=…")
    return record[name]


def _text(value: Any, source: Any) -> str:
    if not isinstance(value, str):
        raise BadRow(f"column {source!r} should hold a text, found {value!r}")
    if not value.strip():
        raise BadRow(f"column {source!r} is empty")
    return value.strip()


def _hash(text: str) -> int:
    """The first 64 bits of a text's SHA-256, which order texts as the whole of it does."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
