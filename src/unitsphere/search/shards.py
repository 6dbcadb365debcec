"""Vectors of a corpus in Parquet files, each of which is there whole or not at all.

_manifest.json             which model made them, how, and of which documents
part-00000.parquet, …      id, and vector: a list of D numbers; in each file as many rows, in the last what is left

Names that begin with a dot or an underscore are left out by what reads such a folder as one table (pandas, Spark).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import parquet

from unitsphere.errors import UsageError

MANIFEST = "_manifest.json"
SAME = ("identity", "role", "max_length", "dtype", "rows", "documents", "texts", "ids")  # of all files of a folder


class Shards:
    """A folder that `writing` has begun. It is read a file at a time.

    Raises:
        UsageError: There is none.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / MANIFEST).exists():
            raise UsageError(
                f"{folder}: no vectors are there. unitsphere encode model=… corpus=… out={folder} makes them."
            )
        self.about: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))

    def __len__(self) -> int:
        """Files, when all are there."""
        return -(-self.about["documents"] // self.about["rows"])

    def file(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.parquet"

    def rows(self, number: int) -> range:
        """The documents of a file."""
        start = number * self.about["rows"]
        return range(start, min(start + self.about["rows"], self.about["documents"]))

    def missing(self) -> list[int]:
        """The files that are not there, or not what `write` has left there."""
        return [number for number in range(len(self)) if self._footer(number) is None]

    @property
    def cut(self) -> dict[str, int]:
        """Tokens kept -> texts that were cut to them, over the files that are there."""
        found: dict[str, int] = {}
        for footer in filter(None, map(self._footer, range(len(self)))):
            for limit, texts in json.loads(footer.metadata[b"cut"]).items():
                found[limit] = found.get(limit, 0) + texts
        return found

    def write(self, number: int, ids: Sequence[str], vectors: np.ndarray, cut: Mapping[int, int]) -> None:
        """One file.

        Args:
            number: Which.
            ids: Of its documents.
            vectors: Theirs, (n, D) float32.
            cut: Tokens kept -> how many of the texts were cut to them.

        Raises:
            UsageError: A number is not finite, or is not when it is stored.
        """
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(vectors, dtype=self.about["dtype"])
        bad = np.flatnonzero(~np.isfinite(kept).all(axis=1))
        if len(bad):
            why = "its weights may have diverged"
            if np.isfinite(vectors[bad[0]]).all():
                why = "its numbers are too large for it; dtype=float32 would fit"
            raise UsageError(
                f"{self.about['model']}: the vector of the document {ids[bad[0]]} is not finite in "
                f"{self.about['dtype']}: {why}."
            )
        vector = pa.FixedSizeListArray.from_arrays(pa.array(kept.ravel()), kept.shape[1])
        table = pa.table({"id": pa.array(ids, pa.string()), "vector": vector}, metadata={"cut": json.dumps(cut)})
        with _replacing(self.file(number)) as part, part.open("wb") as out:
            parquet.write_table(table, out, use_dictionary=False)
            out.flush()
            os.fsync(out.fileno())

    def vectors(self) -> Iterator[np.ndarray]:
        """(n, D) float32 of every file, in order.

        Raises:
            UsageError: A file is damaged.
        """
        for number in range(len(self)):
            try:
                column = parquet.ParquetFile(self.file(number)).read(columns=["vector"])["vector"].combine_chunks()
            except (OSError, pa.ArrowException) as error:
                raise UsageError(
                    f"{self.file(number)}: not a readable parquet file ({error}). Remove it, and unitsphere encode "
                    "with the same settings makes it again."
                ) from error
            flat = column.flatten().to_numpy().astype(np.float32, copy=False)
            yield flat.reshape(len(column), -1)

    def check(self, about: Mapping[str, Any]) -> None:
        """That these are the vectors which `about` describes.

        Args:
            about: As the manifest has it; what it leaves out may be anything.

        Raises:
            UsageError: They are others, or some are not there yet.
        """
        there, here = self._unequal(about)
        if there:
            raise UsageError(f"{self.folder} is of {there}, and this is {here}.")
        missing = self.missing()
        if missing:
            raise UsageError(
                f"{self.folder}: {len(missing)} of {len(self)} files are not there yet, the first is "
                f"{self.file(missing[0]).name}. unitsphere encode with the same settings makes them."
            )

    def _unequal(self, about: Mapping[str, Any]) -> tuple[str, str]:
        """The settings that are not the same, as they are in the folder and in `about`; empty where there are none."""
        differ = [key for key in SAME if key in about and about[key] != self.about[key]]
        there, here = (", ".join(_said(key, of) for key in differ) for of in (self.about, about))
        return there, here

    def _footer(self, number: int) -> Any:
        """What a file says of itself; None where it is not there, or not whole."""
        try:
            footer = parquet.read_metadata(self.file(number))
        except (OSError, pa.ArrowException):
            return None
        return footer if footer.num_rows == len(self.rows(number)) else None


@contextmanager
def writing(folder: Path, about: Mapping[str, Any]) -> Iterator[Shards]:
    """A folder to add files to, for this process alone.

    Args:
        folder: New, or begun with the same settings.
        about: What its manifest says.

    Raises:
        UsageError: It was begun with other settings, it has other things in it, or another process is at it.
    """
    if not (folder / MANIFEST).exists() and folder.exists() and not _bare(folder):
        raise UsageError(f"{folder} is there, and is no folder of vectors; out= names a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for left in folder.glob(".*.writing"):  # by a process that was killed
                left.unlink()
            if not (folder / MANIFEST).exists():
                with _replacing(folder / MANIFEST) as part:
                    part.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            shards = Shards(folder)
            there, here = shards._unequal(about)
            if there:
                raise UsageError(
                    f"{folder} was begun with {there}, and this is {here}. The same goes on with it; another out= "
                    "begins anew."
                )
            yield shards
    except Timeout:
        raise UsageError(f"{folder}: another process is writing there.") from None


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A file to write, which takes the other's place when it is whole."""
    part = file.with_name(f".{file.name}.{os.getpid()}.writing")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _bare(folder: Path) -> bool:
    """Whether nothing is in it but what `writing` leaves when it is killed at once."""
    return folder.is_dir() and all(file.name.startswith(".") for file in folder.iterdir())


def _said(key: str, about: Mapping[str, Any]) -> str:
    """A setting as a person knows it."""
    if key == "identity":
        return f"model={about['model']} ({about[key][:12]})"
    if key in ("texts", "ids"):
        return f"the {key} of {about['corpus']} ({about[key][:12]})"
    return f"{key}={about[key]}"
