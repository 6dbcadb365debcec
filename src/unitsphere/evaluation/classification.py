"""Classification probes: how much of a text's label can be read off its frozen vector?

Papers: Conneau & Kiela 2018, SentEval, https://arxiv.org/abs/1803.05449 (logistic regression on frozen vectors);
Muennighoff et al. 2022, MTEB, https://arxiv.org/abs/2210.07316 (few samples a label, repeated). Both fitted here by
scikit-learn.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from unitsphere.evaluation.labelled import fingerprint, read, share, some, texts_of
from unitsphere.evaluation.retrieval import unit
from unitsphere.types import Embed, Result, RetrievalSet


class Classification:
    """Accuracy and macro-F1 of logistic regression, and of the nearest neighbours by cosine.

    The regression reads the vectors as the model gives them, not standardised, as MTEB does. Fitted on `files.train`;
    without one, on the half of the split's own texts whose hash is even, and scored on the other half.

    Args:
        split: "dev" or "test".
        otherwise: Split -> table of text and label, where no file is given.
        files: train, dev and test -> file, folder or hub data set (see `labelled.texts_of`).
        columns: "text" and "label" -> the file's columns.
        own: Not used; every evaluator is offered the run's own queries.
        name: The task's name in metric keys.
        samples_per_label: Fit on so many texts a label, drawn anew `repeats` times, and take the mean; None is all,
            once. MTEB's protocol is 8, repeats 10, max_iter 100.
        repeats: Draws, where `samples_per_label` is given.
        c: Inverse strength of the L2 penalty.
        max_iter: Steps of the solver; one that is not done then is used as it is.
        neighbours: Of the nearest-neighbour classifier.
        seed: Of the draws.
        max_train, max_rows: At most so many texts are fitted on and scored; None is all.
        max_length: Tokens kept; None is the encoder's limit.

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
        name: str = "classification",
        samples_per_label: int | None = None,
        repeats: int = 10,
        c: float = 1.0,
        max_iter: int = 1000,
        neighbours: int = 5,
        seed: int = 0,
        max_train: int | None = None,
        max_rows: int | None = None,
        max_length: int | None = None,
    ):
        table = texts_of(split, files, otherwise, columns, name, max_rows)
        if files.get("train") is not None:
            self.test, path = table, str(files["train"])
            train = read(path, columns, f"eval.{name}.files.train")
            self.train = some(train[~train.text.isin(set(table.text))], path, max_train)
        else:
            even = share(table.text) * 2**16 % 2 < 1
            self.train = some(table[even], "the half that is fitted on", max_train)
            self.test = table[~even].reset_index(drop=True)
        self.name, self.samples_per_label, self.repeats = name, samples_per_label, repeats
        self.c, self.max_iter, self.neighbours, self.seed, self.max_length = c, max_iter, neighbours, seed, max_length

    def held(self) -> Mapping[str, list[str]]:
        """The texts that are scored."""
        return {self.name: self.test.text.tolist()}

    def __call__(self, embed: Embed) -> Result:
        x, z = (embed(table.text.tolist(), "symmetric", self.max_length) for table in (self.train, self.test))
        y, gold = self.train.label.to_numpy(), self.test.label.to_numpy()
        predicted = np.stack([self._regression(x[rows], y[rows], z) for rows in self._draws(y)])  # (repeats, N)
        nearest = KNeighborsClassifier(min(self.neighbours, len(y)), metric="cosine").fit(unit(x), y).predict(unit(z))
        metrics = {
            f"{self.name}/accuracy": float((predicted == gold).mean()),
            f"{self.name}/f1_macro": float(np.mean([f1_score(gold, p, average="macro") for p in predicted])),
            f"{self.name}/knn_accuracy": float((nearest == gold).mean()),
            f"{self.name}/knn_f1_macro": float(f1_score(gold, nearest, average="macro")),
        }
        correct = {"accuracy": (predicted == gold).mean(axis=0), "knn_accuracy": (nearest == gold).astype(float)}
        items = self.test.rename(columns={"text": "query", "label": "gold"}).assign(predicted=predicted[0], **correct)
        stamp = {
            "kind": "classification",
            "classifier": f"logistic regression, C {self.c:g}, {self.max_iter} steps, vectors as they are",
            "neighbours": self.neighbours,
            "samples_per_label": self.samples_per_label,
            "repeats": len(predicted),
            "seed": self.seed,
            "max_length": self.max_length,
            "sha256": fingerprint(self.train, self.test),
            "train": len(self.train),
            "test": len(self.test),
            "labels": len(set(gold)),
            "majority": round(float(self.test.label.value_counts(normalize=True).max()), 4),
        }
        return Result(metrics, f"{self.name}/accuracy", {self.name: items}, {self.name: stamp})

    def _draws(self, y: np.ndarray) -> list[np.ndarray]:
        """Row numbers of the training texts of each repetition."""
        if self.samples_per_label is None:
            return [np.arange(len(y))]
        draws = []
        for repeat in range(self.repeats):
            order = np.random.default_rng((self.seed, repeat)).permutation(len(y))
            draws.append(
                np.concatenate([order[y[order] == label][: self.samples_per_label] for label in sorted(set(y))])
            )
        return draws

    def _regression(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=self.c, max_iter=self.max_iter, random_state=self.seed).fit(x, y)
        predicted: np.ndarray = fitted.predict(z)
        return predicted
