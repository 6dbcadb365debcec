"""How fast models embed, measured in alternation, so that what else the machine does meets all of them alike."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unitsphere.model import Model


@dataclass
class Timings:
    """Seconds, a list a round: of all texts in batches, and of every text alone."""

    batches: list[float] = field(default_factory=list)
    alone: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True)
class Speed:
    """Medians over rounds.

    Attributes:
        throughput: Texts a second in batches.
        p50, p99: Latency of one text, in milliseconds.
        times: Throughput over the baseline's, the median of the ratios within a round.
        times_one: The same, one at a time.
    """

    throughput: float
    p50: float
    p99: float
    times: float
    times_one: float


def compare(
    models: Mapping[str, Callable[[], Model]],
    baseline: str,
    texts: Sequence[str],
    size: int = 32,
    rounds: int = 3,
    alone: int = 64,
    max_length: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Speed]:
    """Speed of each model on the same texts; in every round each takes its turn, the baseline first.

    Texts go from string to vector: reading, padding, the network, pooling. They are not sorted over batches, as a
    server would not, but a batch is computed as `Model.encode` computes it. One model is in memory at a time, with the
    baseline.

    Args:
        models: Name -> how to load it.
        baseline: One of the names.
        texts: Unequal ones; equal texts are computed once and would count too much.
        size: Texts a batch.
        rounds: Turns of every model.
        alone: How many of the texts are also embedded one at a time.
        max_length: Tokens read of a text.
        tell: Gets a line a model.
    """
    against = models[baseline]()
    speeds = {}
    for name, load in models.items():
        model = against if name == baseline else load()
        mine, theirs = Timings(), Timings()
        for timed in (against, model):
            _round(timed, texts[: 2 * size], Timings(), size, min(alone, 4), max_length)  # warm
        for _ in range(rounds):
            _round(against, texts, theirs, size, alone, max_length)
            if name == baseline:
                mine = theirs
            else:
                _round(model, texts, mine, size, alone, max_length)
        every = 1000 * np.concatenate(mine.alone)
        sums, base_sums = (np.array([sum(turn) for turn in t.alone]) for t in (mine, theirs))
        speeds[name] = Speed(
            throughput=len(texts) / float(np.median(mine.batches)),
            p50=float(np.quantile(every, 0.5)),
            p99=float(np.quantile(every, 0.99)),
            times=float(np.median(np.divide(theirs.batches, mine.batches))),
            times_one=float(np.median(base_sums / sums)),
        )
        tell(f"{name}: {speeds[name].throughput:,.0f} texts/s, {speeds[name].times:.2f} times {baseline}")
        del model
        gc.collect()
    return speeds


def _round(model: Model, texts: Sequence[str], into: Timings, size: int, alone: int, max_length: int | None) -> None:
    began = time.perf_counter()
    for start in range(0, len(texts), size):
        model.encode(texts[start : start + size], max_length=max_length)
    into.batches.append(time.perf_counter() - began)
    turn = []
    for text in texts[:alone]:
        began = time.perf_counter()
        model.encode([text], max_length=max_length)
        turn.append(time.perf_counter() - began)
    into.alone.append(turn)
