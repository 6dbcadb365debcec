"""Clustering probe: do the groups that k-means finds agree with the labels?

Papers: Rosenberg & Hirschberg 2007, V-measure, https://aclanthology.org/D07-1043; Hubert & Arabie 1985, adjusted Rand
index; the protocol is that of Muennighoff et al. 2022, MTEB, https://arxiv.org/abs/2210.07316. All by scikit-learn.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score, v_measure_score

from unitsphere.evaluation.labelled import fingerprint, texts_of
from unitsphere.types import Embed, Result, RetrievalSet


class Clustering:
    """V-measure and adjusted Rand index of k-means, k the number of labels; means over seeds.

    V = 2 h c / (h + c), the harmonic mean of homogeneity h = 1 - H(label | cluster) / H(label) and completeness c, in
    [0, 1]. It is normalised mutual information, too, with the arithmetic mean of the entropies.

    Args:
        split: "dev" or "test".
        otherwise, files, columns, own, name, max_rows, max_length: As for `Classification`.
        batch_size: Rows a step of mini-batch k-means (MTEB: 512); None is k-means on all rows.
        seeds: k-means is run once a seed, from one start (k-means++).

    Raises:
        UsageError: A file is missing or malformed, or has fewer than two labels.
    """

    def __init__(
        self,
        split: str,
        otherwise: Callable[[str], pd.DataFrame],
        files: Mapping[str, str | None],
        columns: Mapping[str, Any],
        own: RetrievalSet | None = None,
        name: str = "clustering",
        batch_size: int | None = None,
        seeds: int = 5,
        max_rows: int | None = None,
        max_length: int | None = None,
    ):
        self.table = texts_of(split, files, otherwise, columns, name, max_rows)
        self.name, self.batch_size, self.seeds, self.max_length = name, batch_size, seeds, max_length

    def held(self) -> Mapping[str, list[str]]:
        """The texts that are clustered."""
        return {self.name: self.table.text.tolist()}

    def __call__(self, embed: Embed) -> Result:
        x, gold = embed(self.table.text.tolist(), "symmetric", self.max_length), self.table.label
        found = [self._clusters(x, gold.nunique(), seed) for seed in range(self.seeds)]
        metrics = {
            f"{self.name}/v_measure": float(np.mean([v_measure_score(gold, clusters) for clusters in found])),
            f"{self.name}/ari": float(np.mean([adjusted_rand_score(gold, clusters) for clusters in found])),
        }
        items = self.table.rename(columns={"text": "query", "label": "gold"}).assign(cluster=found[0])
        stamp = {
            "kind": "clustering",
            "algorithm": "k-means" if self.batch_size is None else f"mini-batch k-means, {self.batch_size} rows",
            "seeds": self.seeds,
            "max_length": self.max_length,
            "sha256": fingerprint(self.table),
            "texts": len(x),
            "labels": gold.nunique(),
        }
        return Result(metrics, f"{self.name}/v_measure", {self.name: items}, {self.name: stamp})

    def _clusters(self, x: np.ndarray, k: int, seed: int) -> np.ndarray:
        settings: dict[str, Any] = {"n_clusters": k, "n_init": 1, "random_state": seed}
        model = (
            KMeans(**settings) if self.batch_size is None else MiniBatchKMeans(batch_size=self.batch_size, **settings)
        )
        clusters: np.ndarray = model.fit_predict(x)
        return clusters
