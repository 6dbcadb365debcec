"""Sources, filters and quotas to hard negatives."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.mining.candidates import Found, Negative, Places
from unitsphere.mining.filters import Filter
from unitsphere.mining.sources import Source

MOST_BARRED = (
    100  # documents of a query that are passed over; where more are equal to its positives, fewer ranks are seen
)


class Miner:
    """Mines a query's negatives out of a corpus: never a labelled positive, the query itself, or a text equal to one.

    Args:
        documents: The corpus.
        sources: Name -> source, attached to the same corpus; a document that two find counts for the first.
        filters: Name -> filter, applied in order.
        pick: Of what is left of a source its best ranks ("top"), or any ("random").
        seed: Of the random pick.

    Raises:
        UsageError: There is no source, or no such pick.
    """

    def __init__(
        self,
        documents: Sequence[str],
        sources: Mapping[str, Source],
        filters: Mapping[str, Filter],
        pick: Literal["top", "random"] = "top",
        seed: int = 0,
    ):
        if not sources:
            raise UsageError("source is empty: source=dense, bm25 or random, or a list of them")
        if pick not in ("top", "random"):
            raise UsageError(f"pick={pick}: top or random would fit.")
        self.documents, self.places = documents, Places(documents)
        self.sources, self.filters, self.pick = sources, filters, pick
        self._generator = np.random.default_rng(seed)

    def __call__(self, queries: Sequence[str], positives: Sequence[Sequence[str]]) -> list[list[Negative]]:
        """The negatives of each query, source after source, best first; fewer than the quotas where too few are left.

        Args:
            queries: Q texts.
            positives: The labelled positives of each; they need not be in the corpus.
        """
        labelled = [self.places.of(texts) for texts in positives]
        never = [np.union1d(rows, self.places.of([query])) for rows, query in zip(labelled, queries, strict=True)]
        taken: list[list[Negative]] = [[] for _ in queries]
        for source in self.sources.values():
            found, keep, ranks = self.candidates(source, queries, labelled, never)
            for q, mine in enumerate(taken):
                known = {negative.row for negative in mine}
                places = [k for k in np.flatnonzero(keep[q]) if int(found.rows[q, k]) not in known]
                if self.pick == "random" and len(places) > source.quota:
                    places = sorted(self._generator.choice(places, source.quota, replace=False))
                mine += [negative(found, q, int(k), int(ranks[q, k])) for k in places[: source.quota]]
        return taken

    def candidates(
        self, source: Source, queries: Sequence[str], labelled: Sequence[np.ndarray], never: Sequence[np.ndarray]
    ) -> tuple[Found, np.ndarray, np.ndarray]:
        """A source's rankings, which of them may be taken (Q, K), and their ranks (Q, K)."""
        deeper = min(max(map(len, never), default=0), MOST_BARRED)
        found = source.find(queries, labelled, min(source.last + deeper, len(self.documents)))
        free = found.rows >= 0
        for q, rows in enumerate(never):
            free[q] &= ~np.isin(found.rows[q], rows)
        ranks = free.cumsum(axis=1)
        keep = free & (ranks >= source.first) & (ranks <= source.last)
        for apply in self.filters.values():
            keep = apply(found, keep)
        return found, keep, ranks


def negative(found: Found, q: int, k: int, rank: int) -> Negative:
    """The candidate at place k of query q, with its scores; those that are no number are left out."""
    scores = {"score": found.scores[q, k], "positive": found.positive[q]}
    scores |= {name: values[q, k] for name, values in found.more.items()}
    numbers = {name: round(float(value), 6) for name, value in scores.items() if np.isfinite(value)}
    return Negative(int(found.rows[q, k]), found.source, rank, numbers)
