"""Is a difference between two models more than the choice of queries, or of seeds, would make?

Two answers from the same per-item scores: the paired bootstrap draws queries or pairs anew, and its quantiles are an
interval of the difference; the paired randomisation test swaps the two models' answers to an item at random, which
changes nothing if the models are equally good.

Papers: Efron & Tibshirani 1993, An Introduction to the Bootstrap; Berg-Kirkpatrick et al. 2012, An Empirical
Investigation of Statistical Significance in NLP, https://aclanthology.org/D12-1091; Yeh 2000, randomisation tests,
https://aclanthology.org/C00-2137; Smucker et al. 2007, randomisation, bootstrap and others compared on retrieval,
https://doi.org/10.1145/1321440.1321528; Holm 1979, https://www.jstor.org/stable/4615733.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from unitsphere.report.records import Record

RESAMPLES = 2000
SWAPS = 10_000


@dataclass(frozen=True)
class Difference:
    """b minus a.

    Attributes:
        value: The difference of the means over seeds.
        low, high: Its 95% interval over resampled queries or pairs; None where there are no per-item scores.
        p_items: Two-sided, from the same resampling.
        p_seeds: Of a paired t-test over the seeds that both have; None with fewer than two, and where a seed has
            several runs, of which none is the other's partner.
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
    first, second = ([scores(r, metric) for r in group] for group, metric in ((a, metric_a), (b, metric_b)))
    if first and second and all(first + second) and same_items(first + second):
        drawn = _resampled(second) - _resampled(first)
        low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975]))
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p_items = float(min(1.0, 2 * (tail + 1) / (RESAMPLES + 1)))
    common = sorted(x.keys() & y.keys(), key=str)
    if len(common) > 1 and (len(x), len(y)) == (len(a), len(b)):
        deltas = np.array([y[seed] - x[seed] for seed in common])
        if deltas.std(ddof=1) > 0:
            p_seeds = float(stats.ttest_1samp(deltas, 0).pvalue)
            effect = float(deltas.mean() / deltas.std(ddof=1))
    return Difference(value, low, high, p_items, p_seeds, effect)


def interval_of_share(runs: Sequence[Record], of: str, metric: str) -> tuple[float | None, float | None]:
    """The 95% interval over resampled queries or pairs of mean(metric) / mean(of), both over these runs; None where
    there are no per-item scores. Its arguments are those of `difference`."""
    whole, part = ([scores(run, name) for run in runs] for name in (of, metric))
    if not (whole and all(whole + part) and same_items(whole + part)):
        return None, None
    low, high = np.quantile(_resampled(part) / _resampled(whole), [0.025, 0.975])
    return float(low), float(high)


def randomisation(a: Record, b: Record, metric_a: str, metric_b: str) -> float:
    """p of the paired randomisation test: how often a difference as large comes about by swapping answers at random.

    p = (1 + #{ |d(m)| >= |d| }) / (1 + SWAPS), d(m) being the difference after the items with m_i = 1, each with
    probability 1/2, have had their two answers swapped. An answer is the value of the measure, or, where the metric is
    Spearman's, the rank of the prediction among that model's predictions; the mean of several tasks swaps within each.

    Args:
        a, b: Runs with the same items (see `scores`, `same_items`).
        metric_a, metric_b: As for `difference`.
    """
    first, second = scores(a, metric_a), scores(b, metric_b)
    drawn = np.zeros(SWAPS)
    observed = 0.0
    for task, items in first.items():
        x, y = _moments(items), _moments(second[task])
        whole = np.stack([x.mean(axis=0), y.mean(axis=0)])
        moved = np.concatenate([mask @ (y - x) for mask in _swaps(len(items))]) / len(items)
        drawn += _value(whole[1] - moved) - _value(whole[0] + moved)
        observed += float(np.diff(_value(whole))[0])
    return float((1 + (np.abs(drawn) >= abs(observed) - 1e-9).sum()) / (1 + SWAPS))


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for several tests (step-down Bonferroni): an adjusted one below alpha may be called significant
    with probability at most alpha that any such call is wrong, however the tests depend on each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1))
    return [float(v) for v in np.minimum(1.0, steps)[np.argsort(order, kind="stable")]]


def scores(record: Record, metric: str) -> dict[str, pd.DataFrame]:
    """The tasks whose mean a metric is: task -> items, each with its value or its ranks; empty where a run has not kept
    them. `<task>/<measure>` is of the file `<task>`, else of `<task>-<measure>`, and `<task>/avg` of all `<task>-*`."""
    stage, task, measure = [*metric.split("/"), "", ""][:3]
    folder = record.folder / "scores" / stage
    files = [folder / f"{task}.parquet"]
    if not files[0].exists():
        files = sorted(folder.glob(f"{task}-*.parquet")) if measure == "avg" else [folder / f"{task}-{measure}.parquet"]
    read = {file.stem: _items(file, measure) for file in files if file.exists()}
    items = {task: table for task, table in read.items() if table is not None}
    return items if items.keys() == read.keys() else {}


def same_items(runs: Sequence[Mapping[str, pd.DataFrame]]) -> bool:
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


def _resampled(runs: Sequence[Mapping[str, pd.DataFrame]]) -> np.ndarray:
    """(RESAMPLES): the mean over runs and tasks under weights that are the same for every run with the same items."""
    of_run = [
        [_value(_weights(len(items)) @ _moments(items).astype(np.float32)) for items in run.values()] for run in runs
    ]
    return np.mean(of_run, axis=(0, 1))


def _moments(items: pd.DataFrame) -> np.ndarray:
    """(N, K): what each item adds to the sums that the metric is a function of. K is 1 for a mean, and 5 for the
    correlation of ranks (divided by N, so that float32 holds their squares)."""
    if items.shape[1] == 1:
        return items.to_numpy(np.float64)
    x, y = (items[c].to_numpy() / len(items) for c in items)
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def _value(means: np.ndarray) -> np.ndarray:
    """Means of moments (B, K) -> (B) values of the metric: the mean itself, or the correlation of the whole sample's
    ranks, which is 0 where a sample holds one rank only."""
    if means.shape[1] == 1:
        return means[:, 0].astype(np.float64)
    mx, my, xx, yy, xy = means.T.astype(np.float64)
    variances = (xx - mx**2) * (yy - my**2)
    return np.where(variances > 1e-12, (xy - mx * my) / np.sqrt(np.maximum(variances, 1e-12)), 0.0)


@lru_cache(maxsize=8)
def _weights(n: int) -> np.ndarray:
    """(RESAMPLES, n): how often each item is drawn in a sample of n with replacement, divided by n."""
    drawn = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return drawn.astype(np.float32) / np.float32(n)


def _swaps(n: int, part: int = 1000) -> Iterator[np.ndarray]:
    """(SWAPS, n) zeros and ones, a part at a time."""
    draw = np.random.default_rng(n)
    for _ in range(SWAPS // part):
        yield draw.integers(0, 2, (part, n), dtype=np.int8).astype(np.float64)
