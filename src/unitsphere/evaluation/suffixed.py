"""An evaluator's result under other names, so that it may stand beside the evaluator's own."""

from unitsphere.types import Result


def suffixed(result: Result, ending: str) -> Result:
    """The result with `ending` behind each task's name, in metrics, items and protocol alike: scifact/mrr@10 becomes
    scifact_dim64/mrr@10, the items sts-stsb become sts_dim64-stsb."""
    tasks = {name.partition("/")[0] for name in (*result.metrics, *result.protocol)}

    def renamed(name: str) -> str:
        fitting = (task for task in tasks if name == task or name.startswith((f"{task}/", f"{task}-")))
        task = max(fitting, key=len, default=name.partition("/")[0])
        return f"{task}{ending}{name.removeprefix(task)}" if name else ""

    return Result(
        metrics={renamed(name): value for name, value in result.metrics.items()},
        primary=renamed(result.primary),
        items={renamed(name): table for name, table in result.items.items()},
        protocol={renamed(task): stamp for task, stamp in result.protocol.items()},
    )
