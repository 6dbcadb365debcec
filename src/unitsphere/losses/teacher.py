"""A frozen teacher whose answers are computed once and kept on disk, by the hash of the text.

So a sweep of students, a resumed run and a reproduced one ask the teacher for what no run has asked before, and get
the same numbers as the run that did.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unitsphere import paths


class Teacher:
    """Answers for texts (or pairs of texts), remembered in `<cache>/teachers/<teacher>.sqlite`.

    Args:
        answer: A list of R questions -> (R, D) array.
        width: D.
        identity: Of the teacher and its settings; equal identities share their answers.
        model: What answers, where torch computes it: it moves to where the answers are wanted.
    """

    def __init__(
        self, answer: Callable[[list[Any]], np.ndarray], width: int, identity: str, model: nn.Module | None = None
    ):
        self.answer, self.width, self.model = answer, width, model
        folder = paths.cache() / "teachers"
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.sqlite"
        with closing(self._open()) as store, store:
            store.execute("CREATE TABLE IF NOT EXISTS answers (question BLOB PRIMARY KEY, answer BLOB)")

    def __call__(self, questions: Sequence[Any], device: torch.device) -> Tensor:
        """(R, D) float32, in the order given; only what is not on disk is computed. R may be 0."""
        if not questions:
            return torch.empty(0, self.width, dtype=torch.float32, device=device)
        keys = [hashlib.sha256(repr(q).encode("utf-8", "surrogatepass")).digest()[:16] for q in questions]
        with closing(self._open()) as store:
            known: dict[bytes, bytes] = {}
            for key in dict.fromkeys(keys):
                row = store.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
                if row is not None:
                    known[key] = row[0]
            new = {key: q for key, q in zip(keys, questions, strict=True) if key not in known}
            if new:
                if self.model is not None:
                    self.model.to(device)
                with torch.autocast(device.type, enabled=False):  # the student's precision is not the teacher's
                    answers = np.asarray(self.answer(list(new.values())), dtype=np.float32)
                fresh = {key: row.tobytes() for key, row in zip(new, answers, strict=True)}
                with store:
                    store.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", fresh.items())
                known |= fresh
        rows = np.stack([np.frombuffer(known[key], dtype=np.float32) for key in keys])
        return torch.from_numpy(rows).to(device)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, timeout=120)


def embedding_teacher(embedder: Any, max_length: int | None) -> Teacher:
    """A teacher that answers texts (role, text), or (role, text, instruction), with an embedder's vectors.

    Args:
        embedder: Any `Model`. One of torch's is frozen here.
        max_length: Tokens it reads of a text; None is its limit.
    """
    network = embedder if isinstance(embedder, nn.Module) else None
    if network is not None:
        network.requires_grad_(False).eval()

    def answer(questions: list[tuple[str, ...]]) -> np.ndarray:
        out = np.empty((len(questions), embedder.dim), dtype=np.float32)
        ways = [(role, *given) for role, _, *given in questions]
        for way in dict.fromkeys(ways):
            rows = [i for i, of_question in enumerate(ways) if of_question == way]
            role, *given = way
            out[rows] = embedder.embed([questions[i][1] for i in rows], role, max_length, *given)
        return out

    return Teacher(answer, embedder.dim, f"{embedder.identity()} {max_length}", network)
