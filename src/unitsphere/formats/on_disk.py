"""Rows that stay on disk: a file with one JSON list a line, beside it where each line begins, and columns that read a
row when they are asked for it.

So memory does not grow with the rows, but for 8 mapped bytes each. A row is read with one call rather than through
mapped memory, whose pages would count as the process's own the longer it runs.
"""

import glob
import hashlib
import json
import os
import shutil
import socket
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unitsphere import paths
from unitsphere.digest import hashes
from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records


class Lines(Sequence[Any]):
    """N rows in a folder that `write` has filled; a row is the list of its values."""

    def __init__(self, folder: Path):
        self.path = folder.resolve() / "rows.jsonl"
        self.file = self.path.open("rb")
        self.starts = np.load(folder / "starts.npy", mmap_mode="r")  # (N + 1)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: Any) -> Any:
        start, end = (int(at) for at in self.starts[row : row + 2])
        return json.loads(os.pread(self.file.fileno(), end - start, start))

    def __iter__(self) -> Iterator[Any]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)


class Column(Sequence[Any]):
    """One value of each row.

    Args:
        lines: The rows.
        place: Which of a row's values.
        rows: Only these rows, in this order; None is all.
    """

    def __init__(self, lines: Lines, place: int, rows: np.ndarray | None = None):
        self.lines, self.place, self.rows = lines, place, rows

    def __len__(self) -> int:
        return len(self.lines) if self.rows is None else len(self.rows)

    def __getitem__(self, at: Any) -> Any:
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at = at % len(self)
        return self.lines[at if self.rows is None else int(self.rows[at])][self.place]

    def __iter__(self) -> Iterator[Any]:
        rows = self.lines if self.rows is None else map(self.lines.__getitem__, self.rows.tolist())
        return (row[self.place] for row in rows)

    def take(self, at: Sequence[int] | np.ndarray) -> "Column":
        """The values at `at`, still on disk; 8 bytes a row are in memory."""
        at = np.asarray(at, dtype=np.int64)
        return Column(self.lines, self.place, at if self.rows is None else self.rows[at])


def documents(
    path: str, id: str | None = None, title: str | None = "title", text: str = "text"
) -> tuple[Column, Column]:
    """Ids and texts of a corpus larger than memory, read once and kept in the cache.

    Args:
        path: A file of records, as BEIR's corpus.jsonl, or a txt of one text a line.
        id: The column of the ids; None is `_id`, and for a record without one the number of its row.
        title: The column of what stands before the text of a record that has it; None is none.
        text: The column of the texts.

    Raises:
        UsageError: The file is missing or empty, or a record has no text, not the id that was named, or that of
            another record.
    """
    numbers, ids = array("q"), array("q")  # of rows, and the hashes of their ids

    def rows() -> Iterator[list[str]]:
        for number, record in records(path):
            if isinstance(record, BadRow):
                raise UsageError(f"{path}, row {number}: {record}")
            if not isinstance(record.get(text), str):
                raise UsageError(f"{path}, row {number}: an object with {text} expected, found {record}")
            if id is not None and record.get(id) is None:
                raise UsageError(f"{path}, row {number}: an object with {id} expected, found {record}")
            own = str(record.get("_id", number) if id is None else record[id])
            numbers.append(number)
            ids.extend(hashes([own]).tolist())
            yield [own, f"{record.get(title) or ''} {record[text]}".strip()]

    folder = paths.cache() / "rows" / name("documents", source(path), json.dumps([id, title, text]))
    if not folder.exists():
        with making(folder) as work:
            if not write(work, rows()):
                raise UsageError(f"{path} is empty.")
            _, first, count = np.unique(np.frombuffer(ids, np.int64), return_index=True, return_counts=True)
            for at in first[count > 1]:
                same = [number for number, of_row in zip(numbers, ids, strict=True) if of_row == ids[at]]
                twice = Lines(work)[int(at)][0]
                raise UsageError(
                    f"{path}: rows {same[0]} and {same[1]} have the same id, {twice!r}; every row needs one of its "
                    "own (a row without one has its number)"
                )
    lines = Lines(folder)
    return Column(lines, 0), Column(lines, 1)


def write(folder: Path, rows: Iterable[Sequence[Any]]) -> int:
    """Write rows of JSON values into a folder, and return how many there were."""
    starts, end = array("q", [0]), 0
    with (folder / "rows.jsonl").open("wb") as out:
        for row in rows:
            end += out.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            starts.append(end)
    np.save(folder / "starts.npy", np.frombuffer(starts, dtype=np.int64))
    return len(starts) - 1


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes its place whole or not at all; where another process was faster, its folder
    stays."""
    here = f"{folder.name}.{socket.gethostname()}."
    for left in folder.parent.glob(f"{glob.escape(here)}*.writing"):  # by a process of this machine that was killed
        number = left.name.removeprefix(here).removesuffix(".writing")
        gone = Path("/proc").exists() and not Path(f"/proc/{number}").exists()
        if gone or number == str(os.getpid()):
            shutil.rmtree(left, ignore_errors=True)
    work = folder.with_name(f"{here}{os.getpid()}.writing")
    work.mkdir(parents=True)
    try:
        yield work
        try:
            work.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def source(path: str) -> str:
    """What tells a file, or a folder of files, from its later states: place, sizes and times.

    Raises:
        UsageError: There is neither.
    """
    place = Path(path.partition(":")[0] if not Path(path).expanduser().exists() else path).expanduser()
    if not place.exists():
        raise UsageError(f"{path}: no such file or folder here; what stays on disk has to be there first.")
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return f"{path} " + " ".join(f"{f.resolve()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)


def name(*parts: str) -> str:
    """A folder's name for what `parts` describe."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]
