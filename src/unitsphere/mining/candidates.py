"""What a source of hard negatives finds for some queries, before anything is filtered or chosen.

Q queries, K places in a ranking, E documents that a query must never get as a negative.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Found:
    """One source's rankings.

    Attributes:
        source: Its name.
        queries: Q texts.
        documents: All texts of the corpus.
        rows: (Q, K) rows of the corpus, best first, -1 where there are no more.
        scores: (Q, K); higher is closer to the query.
        labelled: The rows of each query's positives.
        positive: (Q) score of the query's lowest labelled positive in the same source, so that a negative under it is
            under all; not a number where it has none.
        more: Further scores, (Q, K) each, that filters add; kept with the negatives.
    """

    source: str
    queries: Sequence[str]
    documents: Sequence[str]
    rows: np.ndarray
    scores: np.ndarray
    labelled: Sequence[np.ndarray]
    positive: np.ndarray
    more: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Negative:
    """One mined document, and how it was found.

    Attributes:
        row: Of the corpus.
        source: The source's name.
        rank: Its place, from 1, among the documents that are not the query's positives.
        scores: `score` and `positive` of the source, and what filters added.
    """

    row: int
    source: str
    rank: int
    scores: dict[str, float]


class Places:
    """Where texts stand in a corpus, by hash: 16 bytes a document, whatever its length.

    Texts that differ only in case and white space are the same text.

    Args:
        documents: The corpus, read once.
    """

    def __init__(self, documents: Sequence[str]):
        hashes = np.fromiter((_hash(text) for text in documents), np.uint64, len(documents))
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """The rows of every document that is one of these texts, ascending."""
        hashes = np.array([_hash(text) for text in texts], np.uint64)
        starts, ends = (np.searchsorted(self._sorted, hashes, side) for side in ("left", "right"))
        found = [self._order[start:end] for start, end in zip(starts, ends, strict=True)]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def _hash(text: str) -> int:
    folded = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest(), "little")


def lowest(scores: np.ndarray) -> float:
    """The smallest of some scores; not a number where there are none."""
    return float(scores.min()) if len(scores) else float("nan")
