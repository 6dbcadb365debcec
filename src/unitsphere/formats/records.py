"""Records out of csv, tsv, jsonl, txt and parquet files (gzipped or not), dataset folders and hubs."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unitsphere.errors import UsageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".parquet")


class BadRow(Exception):
    """One row cannot be used; the reader goes on behind it."""


def records(path: str, header: bool = True) -> Iterator[tuple[int, dict[Any, Any] | BadRow]]:
    """Yield (row number as an editor counts lines, record), or the fault in place of a malformed record.

    Args:
        path: A file, a folder written by `datasets`, or a hub id with an optional split: `owner/name:train`.
        header: Whether csv and tsv name their columns in the first line; otherwise columns are numbered from 0.

    Raises:
        UsageError: No such file and no such data set, or a file of an unknown kind.
    """
    file = Path(path).expanduser()
    if not file.exists() or file.is_dir():
        yield from _dataset(path)
        return
    kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    if kind not in SUFFIXES:
        raise UsageError(f"{file}: a file ending in {', '.join(SUFFIXES)}, or one of these with .gz, would fit.")
    if kind == ".parquet":
        yield from _parquet(file)
        return
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
            if kind == ".txt":
                yield from ((n, {"text": line.strip()}) for n, line in enumerate(lines, 1) if line.strip())
            elif kind in (".jsonl", ".ndjson"):
                yield from _jsonl(lines)
            else:
                yield from _separated(lines, "," if kind == ".csv" else "\t", header)
    except UnicodeDecodeError as error:
        with opener(file, "rb") as lines:
            raise UsageError(f"{file}{_not_utf8(lines)}. Save it as UTF-8.") from error
    except (gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise UsageError(f"{file}: not readable as {kind[1:]} ({error}).") from error


def _not_utf8(lines: Iterable[bytes]) -> str:
    """Which of a file's lines is the first that is not UTF-8, and what stands there."""
    for number, line in enumerate(lines, 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            start = max(0, error.start - 20)
            return f", line {number}, byte {error.start + 1}: not UTF-8: {line[start : error.start + 20]!r}"
    return ": not UTF-8"


def _jsonl(lines: Any) -> Iterator[tuple[int, dict[Any, Any] | BadRow]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, BadRow(f"not valid JSON ({error.msg} at column {error.colno}): {line.strip()[:80]!r}")
            continue
        if not isinstance(record, dict):
            yield number, BadRow(f"a JSON object expected, found {line.strip()[:80]!r}")
        elif "\\u" in line and not _unicode(record):
            yield number, BadRow(f"half of a surrogate pair, which is no character: {line.strip()[:80]!r}")
        else:
            yield number, record


def _unicode(record: dict[str, Any]) -> bool:
    """Whether all of its texts are Unicode, which JSON's escapes need not be."""
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _separated(lines: Any, delimiter: str, header: bool) -> Iterator[tuple[int, dict[Any, Any] | BadRow]]:
    # Tab-separated files are written without quoting: a quotation mark is a character of the text.
    quoted = delimiter == ","
    csv.field_size_limit(2**31 - 1)  # of the whole process; its default of 128 KiB is less than a long document
    reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    names: list[Any] | None = next(reader, None) if header else None
    for row in reader:
        if not row:
            continue
        keys = names if names is not None else list(range(len(row)))
        if len(row) != len(keys):
            yield reader.line_num, BadRow(f"{len(keys)} columns expected, found {len(row)}")
        else:
            yield reader.line_num, dict(zip(keys, row, strict=True))


def _parquet(file: Path) -> Iterator[tuple[int, dict[Any, Any] | BadRow]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        number = 0
        for batch in table.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not a readable parquet file ({error}).") from error


def _dataset(path: str) -> Iterator[tuple[int, dict[Any, Any] | BadRow]]:
    import datasets

    name, _, split = path.partition(":")
    folder = Path(name).expanduser()
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(folder))
            loaded = loaded if isinstance(loaded, datasets.Dataset) else loaded[split or "train"]
        else:
            loaded = datasets.load_dataset(name, split=split or "train")
    except Exception as error:
        if isinstance(error, KeyboardInterrupt | MemoryError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{path}: no such file here, and no folder or hub data set of that name could be loaded ({reason})."
        ) from error
    yield from enumerate(loaded, 1)
