"""A map of the space: texts as points in a plane, in groups by label or by cluster.

Papers: van der Maaten & Hinton 2008, t-SNE, https://jmlr.org/papers/v9/vandermaaten08a.html; McInnes et al. 2018, UMAP,
https://arxiv.org/abs/1802.03426
Code: scikit-learn, and umap-learn (the extra `umap`). Neighbours in the map are neighbours in the space; distances
between groups far apart, and their sizes, mean little in t-SNE and UMAP.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from unitsphere.errors import UsageError
from unitsphere.evaluation.labelled import read
from unitsphere.evaluation.retrieval import own_or_path, unit, vectors
from unitsphere.formats.records import SUFFIXES
from unitsphere.types import Embed, Result, RetrievalSet

FEWEST = 5


class Map:
    """Places texts in a plane; no metric, only items for the report. On dev, which is looked at often, it does nothing.

    The texts are queries and their documents, or those of a file with labels.

    Args:
        split: "dev" or "test".
        own: The run's own queries of that split, shown where `path` is None.
        path: A file of texts with labels, a BEIR folder, or the name of one in `UNITSPHERE_DATA`.
        method: "tsne", "umap" or "pca".
        colour: "label" (of a file), "role" (query or document) or "cluster" (of k-means); None is the label where
            there are labels, else the cluster. Clusters are found anew in each space, before and after training, and
            called by the text nearest their centre.
        samples: At most so many texts: the first pairs, or labelled texts drawn at random.
        clusters: How many k-means makes.
        max_length: Tokens kept; None is the data's own setting.
        columns: "text" and "label" -> the file's columns; None is these names.

    Raises:
        UsageError: `method` or `colour` has no such name or there are no labels, the file is malformed, or there are
            fewer than five texts.
    """

    def __init__(
        self,
        split: str,
        own: RetrievalSet | None = None,
        path: str | None = None,
        method: str = "tsne",
        colour: str | None = None,
        samples: int = 1000,
        clusters: int = 8,
        max_length: int | None = None,
        columns: Mapping[str, Any] | None = None,
    ):
        if method not in METHODS:
            raise UsageError(f"eval.map.method={method}: {', '.join(METHODS)} would fit.")
        if method == "umap":
            _umap_installed()
        of_file = path is not None and path.removesuffix(".gz").endswith(SUFFIXES)
        if of_file:
            columns = columns or {"text": "text", "label": "label"}
            table = read(str(path), columns, "eval.map.path").assign(role="query")  # as the probes read their texts
            self.texts = table.sample(min(samples, len(table)), random_state=0).sort_index().reset_index(drop=True)
            self.set = RetrievalSet("", {}, {}, {}, max_length)
        else:
            self.set = own_or_path(split, own, path, max_length)
            self.texts = _pairs(self.set, samples)
        fitting = [column for column in ("label", "role") if column in self.texts] + ["cluster"]
        if (colour or fitting[0]) not in fitting:
            raise UsageError(f"eval.map.colour={colour}: these texts have {', '.join(fitting)}.")
        if len(self.texts) < FEWEST:
            raise UsageError(f"eval.map: {len(self.texts)} texts; a map needs {FEWEST}.")
        self.colour = colour or ("label" if of_file else "cluster")
        self.split, self.method, self.clusters = split, method, clusters

    def held(self) -> Mapping[str, Sequence[str]]:
        """Nothing: a map is a picture, not a score."""
        return {}

    def __call__(self, embed: Embed) -> Result:
        if self.split == "dev":
            return Result({}, "", {}, {})
        parts = self.texts.groupby("role", sort=False)["text"]  # rows of a role stand together
        z = np.concatenate([unit(vectors(embed, list(texts), str(role), self.set)) for role, texts in parts])
        group = clustered(z, self.texts["text"], self.clusters) if self.colour == "cluster" else self.texts[self.colour]
        x, y = METHODS[self.method](z).T
        table = pd.DataFrame(
            {"text": self.texts["text"].str.slice(0, 120), "role": self.texts["role"], "group": group, "x": x, "y": y}
        )
        stamp = {"kind": "map", "method": self.method, "colour": self.colour, "texts": len(table)}
        return Result({}, "", {"map": table}, {"map": {**stamp, "max_length": self.set.max_length}})


def clustered(z: np.ndarray, texts: pd.Series, clusters: int) -> list[str]:
    """Of each unit vector (N, D) the name of its k-means cluster: the text nearest the centre, cut at 40 characters."""
    made = KMeans(min(clusters, len(z)), n_init=4, random_state=0).fit(z)
    names: list[str] = []
    for row in made.transform(z).argmin(axis=0):
        name = " ".join(texts.iloc[int(row)].split())[:40]
        names.append(f"{name} ({len(names) + 1})" if name in names else name)  # two may begin alike
    return [names[i] for i in made.labels_]


def _pca(z: np.ndarray) -> np.ndarray:
    return PCA(2, svd_solver="full").fit_transform(z)


def _tsne(z: np.ndarray) -> np.ndarray:
    perplexity = min(30.0, (len(z) - 1) / 3)  # sklearn's own, where there are enough points
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(z)


def _umap(z: np.ndarray) -> np.ndarray:
    neighbours = min(15, len(z) - 1)
    made = _umap_installed()(n_neighbors=neighbours, metric="cosine", init="pca", random_state=0, n_jobs=1)
    return np.asarray(made.fit_transform(z))


METHODS = {"tsne": _tsne, "umap": _umap, "pca": _pca}


def _umap_installed() -> type:
    try:
        from umap import UMAP
    except ImportError as error:
        raise UsageError(f"eval.map.method=umap needs umap-learn: pip install 'unitsphere[umap]' ({error})") from None
    return UMAP


def _pairs(of: RetrievalSet, samples: int) -> pd.DataFrame:
    """The first queries, each with a relevant document, and these documents: columns text and role."""
    queries = list(of.queries)[: max(1, samples // 2)]
    documents = dict.fromkeys(next(d for d, grade in of.qrels[q].items() if grade >= 1) for q in queries)
    texts = [*(of.queries[q] for q in queries), *(of.corpus[d] for d in documents)]
    return pd.DataFrame({"text": texts, "role": ["query"] * len(queries) + ["document"] * len(documents)})
