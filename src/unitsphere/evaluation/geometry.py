"""The shape of the space: do positives lie close, do all vectors spread, how many dimensions are in use?

Papers: Wang & Isola 2020, alignment and uniformity, https://arxiv.org/abs/2005.10242; Roy & Vetterli 2007, effective
rank, and Garrido et al. 2023, RankMe, https://arxiv.org/abs/2210.02885; Ethayarajh 2019, anisotropy,
https://arxiv.org/abs/1909.00512 (mean cosine of random pairs).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from unitsphere.evaluation.retrieval import own_or_path, vectors
from unitsphere.formats.fingerprint import fingerprint
from unitsphere.search.dense import unit
from unitsphere.types import Embed, Held, Result, RetrievalSet


class Geometry:
    """Alignment, uniformity, effective rank and mean cosine of a retrieval set's vectors.

    Args:
        split: "dev" or "test".
        own: The run's own queries of that split, measured where `path` is None.
        path: A BEIR folder, or the name of one in `UNITSPHERE_DATA`.
        samples: At most so many queries, and so many documents, are measured (the first ones).
        max_length: Tokens kept; None is the data's own setting.
    """

    def __init__(
        self,
        split: str,
        own: RetrievalSet | None = None,
        path: str | None = None,
        samples: int = 1000,
        max_length: int | None = None,
    ):
        self.set = own_or_path(split, own, path, max_length)
        self.samples = samples

    def held(self) -> Held:
        """The queries, as for retrieval."""
        return {self.set.name: list(self.set.queries.values())}

    def __call__(self, embed: Embed) -> Result:
        queries = list(self.set.queries)[: self.samples]
        pairs = [(q, next(d for d, grade in self.set.qrels[q].items() if grade >= 1)) for q in queries]
        q = unit(vectors(embed, [self.set.queries[i] for i, _ in pairs], "query", self.set))
        d = unit(vectors(embed, [self.set.corpus[i] for _, i in pairs], "document", self.set))
        everything = np.concatenate([q, d])
        metrics = {
            "geometry/alignment": alignment(q, d),
            "geometry/uniformity": uniformity(everything),
            "geometry/effective_rank": effective_rank(everything),
            "geometry/mean_cosine": mean_cosine(everything),
        }
        texts = [self.set.queries[i] for i, _ in pairs], [self.set.corpus[i] for _, i in pairs]
        judged = [self.set.qrels[query] for query, _ in pairs], [document for _, document in pairs]
        seen = pd.concat([cosines(q, d, *judged), hardest(q, d, *judged)])
        items = {"geometry-map": flat(q, d, *texts), "geometry-cosines": seen}
        stamp = {
            "kind": "geometry",
            "set": self.set.name,
            "pairs": len(pairs),
            "max_length": self.set.max_length,
            "sha256": fingerprint(self.set)[:16],
        }
        return Result(metrics, "geometry/effective_rank", items, {"geometry": stamp})


def flat(
    q: np.ndarray, d: np.ndarray, queries: Sequence[str], documents: Sequence[str], count: int = 250
) -> pd.DataFrame:
    """The first pairs of unit vectors (N, D) in the plane of their two principal components.

    Returns:
        Columns pair, role (query or document), text (cut at 120 characters), x, y.
    """
    both, n = np.concatenate([q[:count], d[:count]]), len(q[:count])
    x, y = PCA(2, svd_solver="full").fit_transform(both).T if len(both) > 2 else np.zeros((2, len(both)))
    texts = pd.Series([*queries[:count], *documents[:count]], dtype=str).str.slice(0, 120)
    roles = np.repeat(["query", "document"], n)
    return pd.DataFrame({"pair": np.tile(np.arange(n), 2), "role": roles, "text": texts, "x": x, "y": y})


def cosines(
    q: np.ndarray, d: np.ndarray, grades: Sequence[Mapping[str, int]], documents: Sequence[str]
) -> pd.DataFrame:
    """Cosines of positive pairs of unit vectors (N, D), and of each query with the next one's document, where that is
    not relevant to it too; each query's judgments and each document's id."""
    following = [*documents[1:], *documents[:1]]
    wrong = np.array([of_query.get(document, 0) < 1 for of_query, document in zip(grades, following, strict=True)])
    values = (q * d).sum(axis=1), (q * np.roll(d, -1, axis=0)).sum(axis=1)[wrong]
    kinds = np.repeat(["positive", "other"], [len(of_kind) for of_kind in values])
    return pd.DataFrame({"kind": kinds, "cosine": np.concatenate(values)})


def hardest(
    q: np.ndarray, d: np.ndarray, grades: Sequence[Mapping[str, int]], documents: Sequence[str]
) -> pd.DataFrame:
    """Cosine of each query's nearest document that is not relevant to it, among the others' (the model's own hard
    negatives); unit vectors (N, D), each query's judgments and each document's id."""
    values = q @ d.T
    wrong = [[of_query.get(document, 0) < 1 for document in documents] for of_query in grades]
    nearest = np.where(wrong, values, -np.inf).max(axis=1)
    found = nearest[np.isfinite(nearest)]
    return pd.DataFrame({"kind": ["hardest other"] * len(found), "cosine": found})


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """E ||x - y||^2 over positive pairs of unit vectors (N, D); in [0, 4], lower is closer."""
    return float(((x - y) ** 2).sum(axis=1).mean())


def uniformity(x: np.ndarray) -> float:
    """log E_{i<j} exp(-2 ||x_i - x_j||^2) over unit vectors (N, D); in [-8, 0], lower is more even."""
    i, j = np.triu_indices(len(x), k=1)
    squared = 2 - 2 * (x @ x.T)[i, j]
    return float(np.log(np.exp(-2 * squared.clip(min=0)).mean()))


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of the centred vectors (N, D); in [1, min(N, D)]."""
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    p = singular / max(singular.sum(), 1e-12)
    return float(np.exp(-(p * np.log(p + 1e-12)).sum()))


def mean_cosine(x: Any) -> float:
    """Mean cosine of two different unit vectors (N, D), array or tensor; in [-1, 1], 1 is a collapsed space."""
    n = len(x)
    return float(((x.sum(axis=0) ** 2).sum() - (x**2).sum()) / (n * (n - 1)))
