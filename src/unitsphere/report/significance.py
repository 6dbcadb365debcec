"""Is a difference between two models more than the choice of queries, or of seeds, would make?

Papers: Efron & Tibshirani 1993, An Introduction to the Bootstrap; Berg-Kirkpatrick et al. 2012, An Empirical
Investigation of Statistical Significance in NLP, https://aclanthology.org/D12-1091; Smucker et al. 2007, on retrieval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from unitsphere.report.records import Record

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """b minus a.

    Attributes:
        value: The difference of the means over seeds.
        low, high: Its 95% interval over resampled queries or pairs; None where there are no per-item scores.
        p_items: Two-sided, from the same resampling.
        p_seeds: Of a paired t-test over the seeds that both have; None with fewer than two.
        effect: Cohen's d over these seeds: mean difference / standard deviation of the differences.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p_items: float | None = None
    p_seeds: float | None = None
    effect: float | None = None


def difference(a: Sequence[Record], b: Sequence[Record], metric_a: str, metric_b: str) -> Difference:
    """Compare two groups of runs that differ in their seed only.

    Args:
        a: The baseline's runs.
        b: The other's.
        metric_a: `<stage>/<task>/<measure>` of the baseline.
        metric_b: Of the other; a different stage of the same measure compares a model before and after.
    """
    a, b = [r for r in a if metric_a in r.metrics], [r for r in b if metric_b in r.metrics]
    x, y = {r.seed: r.metrics[metric_a] for r in a}, {r.seed: r.metrics[metric_b] for r in b}
    value = float(np.mean([r.metrics[metric_b] for r in b]) - np.mean([r.metrics[metric_a] for r in a]))
    low = high = p_items = p_seeds = effect = None
    first, second = (_scores(group, metric) for group, metric in ((a, metric_a), (b, metric_b)))
    if first and second and _same_items(first + second):
        drawn = _resampled(second) - _resampled(first)
        low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975]))
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p_items = float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)))
    common = sorted(x.keys() & y.keys(), key=str)
    if len(common) > 1:
        deltas = np.array([y[seed] - x[seed] for seed in common])
        if deltas.std(ddof=1) > 0:
            p_seeds = float(stats.ttest_1samp(deltas, 0).pvalue)
            effect = float(deltas.mean() / deltas.std(ddof=1))
    return Difference(value, low, high, p_items, p_seeds, effect)


def _scores(group: Sequence[Record], metric: str) -> list[dict[str, pd.DataFrame]]:
    """Of each run, the tasks whose mean is the metric: task -> items; empty where a run has not kept them."""
    stage, task, measure = [*metric.split("/"), "", ""][:3]
    found = []
    for record in group:
        folder = record.folder / "scores" / stage
        if task == "sts":
            files = sorted(folder.glob("sts-*.parquet")) if measure == "avg" else [folder / f"sts-{measure}.parquet"]
        else:
            files = [folder / f"{task}.parquet"]
        read = {file.stem: _items(file, measure) for file in files if file.exists()}
        items = {task: table for task, table in read.items() if table is not None}
        if not items or items.keys() != read.keys():
            return []
        found.append(items)
    return found


def _same_items(runs: Sequence[dict[str, pd.DataFrame]]) -> bool:
    """Whether all have the same queries or pairs, in the same order."""
    tasks = runs[0]
    return all(
        run.keys() == tasks.keys() and all(run[task].index.equals(tasks[task].index) for task in tasks) for run in runs
    )


@lru_cache(maxsize=512)
def _items(file: Path, measure: str) -> pd.DataFrame | None:
    table = pd.read_parquet(file)
    if {"prediction", "score"} <= set(table):
        ranks = table[["prediction", "score"]].rank()
        return ranks.set_index(pd.util.hash_pandas_object(table[["sentence1", "sentence2"]], index=False))
    return table.set_index("query")[[measure]] if measure in table else None


def _resampled(runs: Sequence[dict[str, pd.DataFrame]]) -> np.ndarray:
    """(RESAMPLES): the mean over runs and tasks under weights that are the same for every run with the same items."""
    per_task = [np.mean([_statistic(run[task])(_weights(len(run[task]))) for run in runs], axis=0) for task in runs[0]]
    return np.mean(per_task, axis=0)


def _statistic(items: pd.DataFrame) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (B, N) that sum to 1 -> the metric under each: a mean, or the correlation of the whole sample's ranks."""
    if items.shape[1] == 1:
        values = items.to_numpy(np.float32)[:, 0]
        return lambda w: w @ values
    x, y = (items[c].to_numpy() / len(items) for c in items)
    moments = np.stack([x, y, x * x, y * y, x * y], axis=1).astype(np.float32)  # (N, 5)

    def correlation(w: np.ndarray) -> np.ndarray:
        mx, my, xx, yy, xy = (w @ moments).T.astype(np.float64)
        return (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2))

    return correlation


@lru_cache(maxsize=8)
def _weights(n: int) -> np.ndarray:
    """(RESAMPLES, n): how often each item is drawn in a sample of n with replacement, divided by n."""
    drawn = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return drawn.astype(np.float32) / np.float32(n)
