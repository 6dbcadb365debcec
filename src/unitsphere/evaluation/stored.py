"""Vectors kept on disk, so that a model that was scored on a corpus does not embed it again.

One file a question: the model, the settings and the whole list of texts make its name. So what is read is what would
have been computed, to the last digit (a text's last digits depend on the batch it was in).
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unitsphere import paths
from unitsphere.types import Embed

GIB = 2**30


class StoredEmbed:
    """An `Embed` that keeps its answers in `<cache>/vectors`. Any number of processes may share the folder.

    Args:
        embed: Asked for what is not there, or cannot be read.
        identity: Of the model and all that its numbers depend on (see `Embedder.identity`).
        gib: The folder's size; the files that were not used for longest make room.
    """

    def __init__(self, embed: Embed, identity: str, gib: float):
        self.embed, self.identity, self.limit = embed, identity, gib * GIB
        self.folder = paths.cache() / "vectors"
        self.folder.mkdir(exist_ok=True)

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        question = json.dumps([self.identity, role, max_length, prompt, list(texts)])
        file = self.folder / f"{hashlib.sha256(question.encode()).hexdigest()}.npz"
        vectors = _read(file)
        if vectors is None:
            vectors = self.embed(texts, role, max_length, prompt)
            if vectors.nbytes < self.limit:
                _write(file, vectors)
                self._make_room()
        return vectors

    def _make_room(self) -> None:
        """Remove the files that were used least lately until the rest fits."""
        found = []
        for file in self.folder.glob("*.npz"):
            try:
                found.append((file.stat().st_mtime, file.stat().st_size, file))
            except FileNotFoundError:  # another process has removed it
                continue
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if total <= self.limit:
                break
            file.unlink(missing_ok=True)
            total -= size


def _read(file: Path) -> np.ndarray | None:
    """The vectors in a file; None where there is none or it is damaged (its format has a checksum)."""
    try:
        with np.load(file) as stored:
            vectors: np.ndarray = stored["vectors"]
        os.utime(file)
        return vectors
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, vectors: np.ndarray) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.writing")
    with part.open("wb") as out:
        np.savez(out, vectors=vectors)
    part.replace(file)
