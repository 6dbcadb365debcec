"""Run several evaluators over one embedding function."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import CachedEmbed, OutOfTime
from unitsphere.types import Embed, Evaluator, Result


def score(
    evaluators: Sequence[Evaluator],
    embed: Embed,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """One result out of all (see `joined`). Texts they share are embedded once.

    Args:
        evaluators: In the order of the table.
        embed: Texts to vectors.
        seconds: That each may embed for; what is finished then is reported, and its protocol has `stopped`, which says
            how much that is. None is for ever.
        clock: What measures them; of several ranks, the same one for all.

    Raises:
        UsageError: `seconds` is not positive, two report the same metric, or a vector is not finite.
    """
    if seconds is not None and seconds <= 0:
        raise UsageError(f"eval_seconds={seconds}: more than 0, or null for no limit, would fit.")
    cached = CachedEmbed(embed, seconds, clock)
    results = []
    for evaluator in evaluators:
        cached.start()
        results.append(finished(evaluator, cached))
    return joined(results)


def joined(results: Sequence[Result]) -> Result:
    """One result out of several. Its primary metric is that of the first evaluator that has one, or "" where one before
    it was stopped with nothing finished, which no other stands in for.

    Raises:
        UsageError: Two report the same metric.
    """
    names = [name for result in results for name in result.metrics]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"eval: two evaluators report {', '.join(sorted(twice))}.")
    return Result(
        metrics={name: value for result in results for name, value in result.metrics.items()},
        primary=next((result.primary for result in results if result.primary or _stopped(result)), ""),
        items={task: table for result in results for task, table in result.items.items()},
        protocol={task: stamp for result in results for task, stamp in result.protocol.items()},
    )


def finished(evaluator: Evaluator, embed: Embed) -> Result:
    """What an evaluator reports, or, where its time was over before there was anything, that."""
    try:
        return evaluator(embed)
    except OutOfTime:
        return Result({}, "", {}, {type(evaluator).__name__.lower(): {"stopped": "nothing finished"}})


def _stopped(result: Result) -> bool:
    return any("stopped" in stamp for stamp in result.protocol.values())


def scores_nothing(evaluators: Sequence[Evaluator]) -> bool:
    """Whether none of these evaluators has anything to score, which needs no model to find out."""

    def late(texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None) -> np.ndarray:
        raise OutOfTime([])

    return not joined([finished(evaluator, late) for evaluator in evaluators]).protocol


def remarks(result: Result, seconds: float | None) -> list[str]:
    """What a person must know beside the numbers, one line each: what was stopped, and what was left out."""
    lines = []
    for task, stamp in result.protocol.items():
        if "stopped" in stamp:
            lines.append(f"{task}: stopped after {seconds:g} s with {stamp['stopped']}")
        if "unanswerable" in stamp:
            lines.append(f"{task}: left out {stamp['unanswerable']:,} queries that have no relevant document")
        if "empty" in stamp:
            lines.append(f"{task}: {stamp['empty']:,} documents or queries have no text; they are scored as they are")
    return lines


def unfinished(result: Result, metric: str) -> str | None:
    """Why a metric cannot be held against that of a whole evaluation; None where it can."""
    if metric in result.metrics:
        stamp = result.protocol.get(metric.partition("/")[0], {})
        return stamp.get("stopped")
    stopped = [f"{task}: {stamp['stopped']}" for task, stamp in result.protocol.items() if "stopped" in stamp]
    return ", ".join(stopped) or None
