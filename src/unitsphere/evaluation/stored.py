"""Vectors kept on disk, so that a model that was scored on a corpus does not embed it again.

One file a question: the model, the settings and the whole list of texts make its name. So what is read is what would
have been computed, to the last digit (a text's last digits depend on the batch it was in).
"""

import hashlib
import json
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unitsphere import paths
from unitsphere.process import processor
from unitsphere.types import Embed

GIB = 2**30
DAY = 24 * 60 * 60  # seconds

Counts = dict[tuple[str, int], tuple[int, int]]


class StoredEmbed:
    """An `Embed` that keeps its answers in `<cache>/vectors`. Any number of processes may share the folder.

    Args:
        embed: Asked for what is not there, or cannot be read.
        identity: Of the model and all that its numbers depend on (see `Embedder.identity`).
        gib: The folder's size; the files that were not used for longest make room.
        read: What `embed` has counted so far (see `Embedder.counting`); what is found on disk is added to it as if it
            had been read.
    """

    def __init__(self, embed: Embed, identity: str, gib: float, read: Callable[[], Counts] = dict):
        self.embed, self.identity, self.limit, self.read = embed, identity, gib * GIB, read
        self.folder = paths.cache() / "vectors"
        self.folder.mkdir(exist_ok=True)

    def __call__(
        self, texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None
    ) -> np.ndarray:
        question = json.dumps([self.identity, role, max_length, prompt, list(texts)])
        file = self.folder / f"{hashlib.sha256(question.encode()).hexdigest()}.npz"
        found = _read(file)
        if found is not None:
            vectors, counts = found
            for limit, *new in counts.tolist():
                before = self.read().get((role, limit), (0, 0))
                self.read()[role, limit] = before[0] + new[0], before[1] + new[1]
            return vectors
        known = dict(self.read())
        vectors = self.embed(texts, role, max_length, prompt)
        counts = np.array(
            [
                (limit, *np.subtract(count, known.get((of_role, limit), (0, 0))))
                for (of_role, limit), count in self.read().items()
                if of_role == role and count != known.get((of_role, limit))
            ],
            dtype=int,
        )
        if vectors.nbytes < self.limit:
            self._keep(file, vectors, counts)
        return vectors

    def _keep(self, file: Path, vectors: np.ndarray, counts: np.ndarray) -> None:
        try:
            _write(file, vectors, counts)
            self._make_room()
        except OSError as error:
            warnings.warn(f"the vectors were not kept in {self.folder}: {error}", stacklevel=3)

    def _make_room(self) -> None:
        """Remove the files that were used least lately until the rest fits, and what a killed process left half
        written more than a day ago."""
        found = []
        for part in self.folder.glob("*.writing"):
            with suppress(FileNotFoundError):  # another process has removed or finished it
                if part.stat().st_mtime < time.time() - DAY:
                    part.unlink()
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


def remembered(embedder: Any, gib: float) -> Embed:
    """The model's `embed`, with its answers kept on disk.

    Args:
        embedder: A `Model`, not to be changed while this is used.
        gib: The most that all kept answers may take; 0 keeps none.
    """
    if not gib:
        return embedder.embed
    device = embedder.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    machine = (chip, torch.get_num_threads(), torch.__version__)  # a cache may be shared by several
    return StoredEmbed(embedder.embed, f"{embedder.identity()} {machine}", gib, lambda: embedder.read)


def _read(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The vectors in a file, and rows (tokens kept, texts, texts cut) of what was counted; None where there is none or
    it is damaged (its format has a checksum)."""
    try:
        with np.load(file) as stored:
            vectors, counts = stored["vectors"], stored["counts"]
        with suppress(OSError):  # a folder that may only be read
            os.utime(file)
        return vectors, counts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(file: Path, vectors: np.ndarray, counts: np.ndarray) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.writing")
    try:
        with part.open("wb") as out:
            np.savez(out, vectors=vectors, counts=counts)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
