"""Training rows, and what a data set is to the rest of the framework."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unitsphere.digest import hashes
from unitsphere.errors import UsageError
from unitsphere.formats.fingerprint import fingerprint as of_set
from unitsphere.formats.on_disk import Column
from unitsphere.types import RetrievalSet

COLUMNS = (
    "anchor", "positive", "negative", "label", "score", "anchor_instruction", "positive_instruction",
    "language", "task",
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """N training rows as columns; a column that the data does not have is None."""

    anchor: Sequence[str]
    positive: Sequence[str] | None = None
    negative: Sequence[Sequence[str]] | None = None  # any number a row
    label: Sequence[str] | None = None
    score: Sequence[float] | None = None
    anchor_instruction: Sequence[str | None] | None = None  # stands before the anchor instead of its role's prompt
    positive_instruction: Sequence[str | None] | None = None  # likewise before positive and negatives
    language: Sequence[str] | None = None
    task: Sequence[str] | None = None  # the data set of a mixture that the row is from

    def __len__(self) -> int:
        return len(self.anchor)

    @property
    def on_disk(self) -> bool:
        """Whether a row is read when it is asked for, so that nothing of all rows may be kept."""
        columns = (getattr(self, name) for name in COLUMNS)
        return all(isinstance(column, Column) for column in columns if column is not None)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """The rows at `indices`, in that order; rows on disk stay there."""
        columns: dict[str, Any] = {name: v for name in COLUMNS if (v := getattr(self, name)) is not None}
        indices = np.asarray(indices, dtype=np.int64)
        taken: dict[str, Any] = {
            name: v.take(indices) if isinstance(v, Column) else [v[i] for i in indices.tolist()]
            for name, v in columns.items()
        }
        return Rows(**taken)

    def retrieval(self, name: str, max_length: int | None = None) -> RetrievalSet:
        """Anchors as queries and positives as documents: the documents of an anchor are its positives in any row."""
        assert self.positive is not None
        documents = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(self.positive))}
        queries = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(self.anchor))}
        qrels: dict[str, dict[str, int]] = {q: {} for q in queries.values()}
        for anchor, positive in zip(self.anchor, self.positive, strict=True):
            qrels[queries[anchor]][documents[positive]] = 1
        corpus = {i: text for text, i in documents.items()}
        numbered = {i: text for text, i in queries.items()}
        return RetrievalSet(name, corpus, numbered, qrels, max_length, self.instructions)

    @property
    def instructions(self) -> dict[tuple[str, str], str]:
        """(role, text) -> what is put before it instead of the role's prompt, where a row says so."""
        found: dict[tuple[str, str], str] = {}
        for role, texts, given in (
            ("query", self.anchor, self.anchor_instruction),
            ("document", self.positive, self.positive_instruction),
        ):
            if texts is not None and given is not None:
                found |= {(role, t): g for t, g in zip(texts, given, strict=True) if g is not None}
        return found

    @cached_property
    def text_ids(self) -> dict[str, np.ndarray]:
        """Column -> a number for each of its texts, negatives in one list; equal texts have equal numbers (see
        `hashes`)."""
        columns: dict[str, Iterable[str]] = {"anchor": self.anchor}
        if self.positive is not None:
            columns["positive"] = self.positive
        if self.negative is not None:
            columns["negative"] = (text for several in self.negative for text in several)
        found = [hashes(texts) for texts in columns.values()]
        numbers = np.unique(np.concatenate(found), return_inverse=True)[1]
        ends = np.cumsum([len(of_column) for of_column in found[:-1]])
        return dict(zip(columns, np.split(numbers, ends), strict=True))

    @cached_property
    def repeated_texts(self) -> tuple[np.ndarray, np.ndarray]:
        """(E), (E): the texts that stand in more than one row, by number, and a row in which each stands."""
        every = np.arange(len(self))
        owners = [every] * (1 if self.positive is None else 2)
        if self.negative is not None:
            owners.append(np.repeat(every, [len(texts) for texts in self.negative]))
        text, row = np.concatenate(list(self.text_ids.values())), np.concatenate(owners)
        several = np.bincount(text)[text] > 1
        text, row = np.divmod(np.unique(text[several] * len(self) + row[several]), len(self))  # each row once
        several = np.bincount(text)[text] > 1
        return text[several], row[several]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every value of every column, each column as Python writes a list."""
        digest = hashlib.sha256()
        for name in COLUMNS:
            column = getattr(self, name)
            if column is not None:
                digest.update(f"({name!r}, [".encode())
                for number, value in enumerate(column):
                    digest.update(f"{', ' if number else ''}{value!r}".encode("utf-8", "surrogatepass"))
                digest.update(b"])\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """What a data set is made of. Dev chooses, test reports; either is None where there are no queries to score."""

    train: Rows
    dev: RetrievalSet | None
    test: RetrievalSet | None
    skipped: int = 0  # rows left out as bad

    def provenance(self) -> dict[str, Any]:
        """Sizes and fingerprints, for run.json."""
        out: dict[str, Any] = {"train": {"rows": len(self.train), "sha256": self.train.fingerprint}}
        for name, split in (("dev", self.dev), ("test", self.test)):
            if split is not None:
                size = {"queries": len(split.queries), "documents": len(split.corpus)}
                out[name] = size | {"sha256": of_set(split)}
        return out | {"skipped": self.skipped}


class Data(ABC):
    """A data set.

    Args:
        name: The task's name in metric keys.
        columns: Column that a loss reads (`anchor`, `positive`, `negative`, `label`, `score`), an instruction
            (`anchor_instruction`, `positive_instruction`) or `language` -> column of the source.
        batch_size: Rows a step, over all ranks together.
        max_length: Tokens kept of a text in training.
        eval_max_length: Tokens kept where this data's own queries are scored; None is the encoder's limit.

    Raises:
        UsageError: `columns` has a key that no loss reads, or lacks `anchor`.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, Any],
        batch_size: int = 64,
        max_length: int = 64,
        eval_max_length: int | None = None,
    ):
        unknown = set(columns) - set(COLUMNS[:-1])
        if unknown or "anchor" not in columns:
            raise UsageError(
                f"data.columns={dict(columns)}: keys are out of {', '.join(COLUMNS[:-1])}; anchor is needed."
            )
        if batch_size < 2:
            raise UsageError(f"data.batch_size={batch_size}: a contrastive batch has 2 rows or more.")
        self.name = name
        self.columns = dict(columns)
        self.batch_size = batch_size
        self.max_length = max_length
        self.eval_max_length = eval_max_length

    @cached_property
    def splits(self) -> Splits:
        """The data, read once."""
        return self.load()

    def corpus(self, rows: Rows) -> Sequence[str]:
        """The documents among which negatives are mined for training rows: their different positives."""
        return list(dict.fromkeys(rows.positive or ()))

    @abstractmethod
    def load(self) -> Splits:
        """Read the source.

        Raises:
            UsageError: It is missing, empty or malformed; the message names file, row and column.
        """


def fingerprint(parts: Iterable[str]) -> str:
    """SHA-256 over strings, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
