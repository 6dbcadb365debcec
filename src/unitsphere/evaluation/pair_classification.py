"""Pair classification: does the cosine of two texts say whether they are paraphrases (duplicates, entailed, …)?

Paper: Muennighoff et al. 2022, MTEB, https://arxiv.org/abs/2210.07316 (average precision is the main measure). Code
read: sentence-transformers' BinaryClassificationEvaluator, whose best thresholds these are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.evaluation.labelled import fingerprint, read
from unitsphere.evaluation.retrieval import unit
from unitsphere.types import Embed, Result, RetrievalSet


class PairClassification:
    """Average precision of the cosine, and accuracy and F1 at the threshold that is best for each on these pairs.

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct cosines, in [share of positives, 1]. A best threshold is chosen on
    the pairs that are scored, as is custom; so accuracy and F1 are upper bounds. When the time is over, the tasks that
    are finished are reported, without their mean.

    Args:
        split: "dev" or "test".
        tests: Task -> file inside `path`, which report.
        dev: Task -> file, which choose.
        columns: "sentence1", "sentence2" and "label" (0 or 1) -> the files' columns.
        path: A folder laid out as the files say; None is `UNITSPHERE_DATA`.
        max_length: Tokens kept; None is the encoder's limit.
        own: Not used; every evaluator is offered the run's own queries.

    Raises:
        UsageError: A file is missing or malformed, or has pairs of one label only.
    """

    def __init__(
        self,
        split: str,
        tests: Mapping[str, str],
        dev: Mapping[str, str],
        columns: Mapping[str, Any],
        path: str | None = None,
        max_length: int | None = None,
        own: RetrievalSet | None = None,
    ):
        folder = Path(path).expanduser() if path else paths.data()
        if folder is None:
            raise UsageError(
                "eval=pair_classification: name a folder with eval.pair_classification.path or UNITSPHERE_DATA"
            )
        files = tests if split == "test" else dev
        self.tasks = {task: pairs(str(folder / file), columns) for task, file in files.items()}
        self.max_length = max_length

    def held(self) -> Mapping[str, list[tuple[str, str]]]:
        """The two texts of each pair, together: a training row that has both would give the label away."""
        return {task: list(zip(table.sentence1, table.sentence2, strict=True)) for task, table in self.tasks.items()}

    def __call__(self, embed: Embed) -> Result:
        metrics: dict[str, float] = {}
        items: dict[str, pd.DataFrame] = {}
        protocol: dict[str, dict[str, Any]] = {}
        stamp = {"kind": "pair classification", "similarity": "cosine", "max_length": self.max_length}
        for task, table in self.tasks.items():
            try:
                a, b = (
                    unit(embed(table[s].tolist(), "symmetric", self.max_length)) for s in ("sentence1", "sentence2")
                )
            except OutOfTime:
                if not items:
                    raise
                break
            cosine, gold = (a * b).sum(axis=1), table.label.to_numpy()
            accuracy, threshold = best_accuracy(cosine, gold)
            metrics |= {
                f"{task}/ap": float(average_precision_score(gold, cosine)),
                f"{task}/accuracy": accuracy,
                f"{task}/f1": best_f1(cosine, gold),
            }
            correct = ((cosine >= threshold) == gold).astype(float)
            items[task] = table.assign(query=table.index, prediction=cosine, accuracy=correct)
            protocol[task] = stamp | {"pairs": len(table), "positives": int(gold.sum()), "sha256": fingerprint(table)}
        if not items:
            return Result({}, "", {}, {})
        if len(self.tasks) == 1:
            return Result(metrics, next(iter(metrics)), items, protocol)
        whole = {"tasks": list(items), "sha256": fingerprint(*(self.tasks[task] for task in items))}
        if len(items) == len(self.tasks):
            metrics["pair_classification/ap"] = float(np.mean([metrics[f"{task}/ap"] for task in items]))
        else:
            whole["stopped"] = f"{len(items)} of {len(self.tasks)} tasks"
        return Result(metrics, "pair_classification/ap", items, protocol | {"pair_classification": stamp | whole})


def pairs(file: str, columns: Mapping[str, Any]) -> pd.DataFrame:
    """A file as columns sentence1, sentence2 and label, 0 or 1.

    Raises:
        UsageError: It is missing or malformed, has another label, or only one.
    """
    table = read(file, columns, "eval.pair_classification.path")
    wrong = table[~table.label.isin(["0", "1"])]
    if len(wrong):
        raise UsageError(f"{file}, record {wrong.index[0] + 1}: the label is 0 or 1, found {wrong.label.iloc[0]!r}.")
    if table.label.nunique() < 2:
        raise UsageError(f"{file}: every pair has the label {table.label[0]}; both are needed.")
    return table.astype({"label": int})


def best_accuracy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The highest accuracy that any threshold gives, and such a threshold: 1 is predicted at or above it.

    Args:
        scores: (N).
        labels: (N), 0 or 1.
    """
    positives, count, threshold = _above(scores, labels)
    right = positives + ((labels == 0).sum() - (count - positives))
    best = int(np.argmax(right))
    return float(right[best] / len(labels)), float(threshold[best])


def best_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The highest F1 = 2 TP / (2 TP + FP + FN) that any threshold gives, over scores (N) and labels (N), 0 or 1."""
    positives, count, _ = _above(scores, labels)
    return float((2 * positives / (count + labels.sum())).max())


def _above(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For a threshold above all scores, then for each distinct score from the highest: how many positives and how many
    pairs reach it, and the threshold itself."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of equal scores
    positives = np.cumsum(labels[order])[last]
    count = np.arange(1, len(scores) + 1)[last]
    return np.append(0, positives), np.append(0, count), np.append(np.inf, ranked[last])
