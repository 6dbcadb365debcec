"""What a source of hard negatives finds for some queries, before anything is filtered or chosen.

Q queries, K places in a ranking, E documents that a query must never get as a negative.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from unitsphere.digest import hashes
from unitsphere.similar import normalised


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


class Joined(Sequence[str]):
    """Two sequences as one, neither of them copied.

    Args:
        first, second: In this order.
    """

    def __init__(self, first: Sequence[str], second: Sequence[str]):
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, row: Any) -> Any:
        return self.first[row] if row < len(self.first) else self.second[row - len(self.first)]

    def __iter__(self) -> Iterator[str]:
        return chain(self.first, self.second)


class Places:
    """Where texts stand in a corpus, by hash: 16 bytes a document, whatever its length.

    Texts that differ only in case, white space and punctuation are the same text (`similar.normalised`).

    Args:
        documents: The corpus, read once.
    """

    def __init__(self, documents: Sequence[str]):
        found = hashes(map(normalised, documents))
        self._order = np.argsort(found, kind="stable")
        self._sorted = found[self._order]

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """The rows of every document that is one of these texts, ascending."""
        wanted = hashes(map(normalised, texts))
        starts, ends = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        found = [self._order[start:end] for start, end in zip(starts, ends, strict=True)]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


def with_positives(corpus: Sequence[str], positives: Sequence[Sequence[str]]) -> Sequence[str]:
    """A corpus, and behind it the positives that are not in it: without them no score could be held against theirs."""
    places = Places(corpus)
    every = dict.fromkeys(text for texts in positives for text in texts)
    missing = [text for text in every if not len(places.of([text]))]
    return Joined(corpus, missing) if missing else corpus


def asked(anchors: Sequence[str], positives: Sequence[str]) -> dict[str, list[str]]:
    """Each different anchor of some pairs -> its positives."""
    found: dict[str, list[str]] = {}
    for anchor, positive in zip(anchors, positives, strict=True):
        found.setdefault(anchor, []).append(positive)
    return found


def lowest(scores: np.ndarray) -> float:
    """The smallest of some scores; not a number where there are none."""
    return float(scores.min()) if len(scores) else float("nan")
