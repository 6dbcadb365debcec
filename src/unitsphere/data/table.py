"""The user's own data in one file or data set: texts, pairs, triplets, scored pairs, labelled texts. Which, `columns`
says."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from unitsphere.data.rows import Data, Rows, Splits
from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records


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
    ):
        super().__init__(name, columns, batch_size, max_length, eval_max_length)
        if path is None:
            raise UsageError("data.path is not set: a file, a dataset folder or a hub id, e.g. data.path=pairs.jsonl")
        if on_bad_row not in ("stop", "skip"):
            raise UsageError(f"data.on_bad_row={on_bad_row}: stop or skip would fit.")
        if "positive" not in columns and (dev_path or test_path):
            raise UsageError("data.dev_path and data.test_path need a positive column: texts alone have no queries.")
        self.path, self.dev_path, self.test_path = path, dev_path, test_path
        self.held_out = held_out
        self.on_bad_row = on_bad_row
        self.max_score, self.instruction_format = max_score, instruction_format

    def load(self) -> Splits:
        rows, skipped = self._read(self.path)
        if rows.positive is None:
            return Splits(rows, None, None, skipped)
        share = {"dev": self.dev_path, "test": self.test_path}
        held = {}
        anchors = sorted(dict.fromkeys(rows.anchor), key=lambda text: hashlib.sha256(text.encode()).digest())
        count = min(self.held_out, len(anchors) // 10)
        if rows.score is not None:  # scored pairs may not fit each other at all
            count = 0
        for split, path in share.items():
            if path is not None:
                held[split], bad = self._read(path)
                skipped += bad
            else:
                mine = set(anchors[:count])
                anchors = anchors[count:]
                held[split] = rows.take([i for i, anchor in enumerate(rows.anchor) if anchor in mine])
        keep = set(anchors)
        train = rows.take([i for i, anchor in enumerate(rows.anchor) if anchor in keep])
        sets = {k: v.retrieval(self.name, self.eval_max_length) if len(v) else None for k, v in held.items()}
        return Splits(train, sets["dev"], sets["test"], skipped)

    def _read(self, path: str) -> tuple[Rows, int]:
        header = not any(isinstance(source, int) for source in self.columns.values())
        taken: dict[str, list[Any]] = {column: [] for column in self.columns}
        bad: Counter[str] = Counter()
        for number, record in records(path, header):
            try:
                if isinstance(record, BadRow):
                    raise record
                values = {column: _take(record, source, column) for column, source in self.columns.items()}
            except BadRow as fault:
                if self.on_bad_row == "stop":
                    raise UsageError(
                        f"{path}, row {number}: {fault}. Mend the row, or leave bad rows out with data.on_bad_row=skip"
                    ) from None
                bad[path] += 1
                continue
            for column, value in values.items():
                taken[column].append(self._scaled(column, value))
        if not taken["anchor"]:
            raise UsageError(
                f"{path}: no usable row" + (f", {bad[path]} bad rows skipped." if bad else "; it is empty.")
            )
        return Rows(**taken), bad[path]

    def _scaled(self, column: str, value: Any) -> Any:
        if column == "score" and self.max_score is not None:
            return value / self.max_score
        return self.instruction_format.format(value) if column.endswith("_instruction") else value


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
            return float(value)
        except (TypeError, ValueError):
            raise BadRow(f"column {source!r} should hold a number, found {value!r}") from None
    return _text(str(value) if column == "label" and value is not None else value, source)


def _value(record: Mapping[Any, Any], name: Any, column: str) -> Any:
    if name not in record:
        found = ", ".join(map(str, record)) or "none"
        raise BadRow(f"no column {name!r}; found: {found}. Name it with data.columns.{column}=…")
    return record[name]


def _text(value: Any, source: Any) -> str:
    if not isinstance(value, str):
        raise BadRow(f"column {source!r} should hold a text, found {value!r}")
    if not value.strip():
        raise BadRow(f"column {source!r} is empty")
    return value.strip()
