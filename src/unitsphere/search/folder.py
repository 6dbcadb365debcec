"""An index on disk: documents, their vectors, and what finds them.

rows.jsonl, starts.npy                   id and text of each document, read a row at a time
vectors, code.json, code.safetensors     their vectors in the bytes of the model's code
index.faiss or bits.npy                  what finds them, unless all vectors are compared
words/                                   BM25, unless it was left out
index.json                               which model made it, and the settings
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unitsphere.build import build, check_targets
from unitsphere.errors import UsageError
from unitsphere.formats import on_disk
from unitsphere.formats.on_disk import Column, Lines
from unitsphere.search import codes
from unitsphere.search.bm25 import BM25
from unitsphere.search.codes import Code
from unitsphere.search.index import Index
from unitsphere.search.vectors import VectorFile


class IndexFolder:
    """What `make` has written. Texts and vectors stay on disk.

    Raises:
        UsageError: There is no index.
    """

    def __init__(self, folder: Path):
        if not (folder / "index.json").exists():
            raise UsageError(f"{folder}: no index is there. unitsphere index model=… corpus=… out={folder} makes one.")
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        lines = Lines(folder)
        self.ids, self.texts = Column(lines, 0), Column(lines, 1)
        self.vectors = VectorFile(folder / "vectors", codes.read(folder))

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def index(self) -> Index:
        check_targets(self.about["index"], (Index,), self.folder / "index.json", "index")
        index: Index = build(self.about["index"])
        index.read(self.folder, self.vectors)
        return index

    @property
    def has_words(self) -> bool:
        return (self.folder / "words").exists()

    @cached_property
    def words(self) -> BM25:
        """
        Raises:
            UsageError: It was left out.
        """
        if not self.has_words:
            raise UsageError(f"{self.folder}: made with bm25=null, so that words cannot be searched.")
        return BM25.read(self.folder / "words")


def make(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    vectors: Iterable[np.ndarray],
    code: Code,
    index: Mapping[str, Any],
    words: Callable[[Sequence[str]], BM25] | None,
    about: Mapping[str, Any],
) -> IndexFolder:
    """Write an index; its folder appears whole or not at all.

    Args:
        folder: New.
        documents: Id and text of each.
        vectors: Theirs, of length one, in blocks (n, D).
        code: What the vectors are stored as.
        index: The config node of an `Index`, built from the vectors as they are stored.
        words: Makes the index of words from the texts; None leaves it out.
        about: What index.json holds besides.

    Raises:
        UsageError: The folder is there already, or the vectors cannot be indexed so.
    """
    if folder.exists():
        raise UsageError(f"{folder} is there already; out= names a new folder.")
    with on_disk.making(folder) as work:
        on_disk.write(work, documents)
        if words is not None:
            words(Column(Lines(work), 1)).write(work / "words")
        built: Index = build(index)
        stored = VectorFile.written(work / "vectors", vectors, code)
        codes.write(code, work)
        built.build(stored)
        built.write(work)
        written = {**about, "documents": len(stored), "vector_bytes": code.bytes, "index": dict(index)}
        (work / "index.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return IndexFolder(folder)
