"""Run several evaluators over one embedding function."""

from collections.abc import Sequence

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import CachedEmbed
from unitsphere.types import Embed, Evaluator, Result


def score(evaluators: Sequence[Evaluator], embed: Embed) -> Result:
    """One result out of all; its primary metric is that of the first evaluator that has one, else "". Texts they share
    are embedded once.

    Raises:
        UsageError: Two report the same metric.
    """
    cached = CachedEmbed(embed)
    results = [evaluator(cached) for evaluator in evaluators]
    names = [name for result in results for name in result.metrics]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"eval: two evaluators report {', '.join(sorted(twice))}.")
    return Result(
        metrics={name: value for result in results for name, value in result.metrics.items()},
        primary=next((result.primary for result in results if result.primary), ""),
        items={task: table for result in results for task, table in result.items.items()},
        protocol={task: stamp for result in results for task, stamp in result.protocol.items()},
    )
