"""Any evaluator on vectors cut to their first numbers.

Paper: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147. An untrained model's row is the control: plain
truncation keeps much of the quality already.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unitsphere.errors import UsageError
from unitsphere.evaluation.cached import OutOfTime
from unitsphere.evaluation.suffixed import suffixed
from unitsphere.types import Embed, Evaluator, Held, Result


class Truncation:
    """Runs an evaluator once a width; its tasks are named `<task>_dim<d>`.

    Args:
        split: "dev" or "test".
        own: The run's own queries of that split, or None.
        evaluator: Called with `split` and `own`; returns the evaluator.
        dims: Widths d.
        measures: Which of its measures are kept; None is all.
    """

    def __init__(
        self,
        split: str,
        own: Any,
        evaluator: Callable[..., Evaluator],
        dims: Sequence[int],
        measures: Sequence[str] | None = None,
    ):
        if not dims or min(dims) < 1:
            raise UsageError(f"eval.truncation.dims={list(dims)}: widths of 1 or more would fit.")
        self.evaluator, self.dims, self.measures = evaluator(split=split, own=own), tuple(dims), measures

    def held(self) -> Held:
        """What the evaluator inside holds."""
        return self.evaluator.held()

    def __call__(self, embed: Embed) -> Result:
        results = {d: suffixed(self.evaluator(_first(embed, d)), f"_dim{d}") for d in self.dims}
        return Result(
            metrics={
                name: value
                for result in results.values()
                for name, value in result.metrics.items()
                if self.measures is None or name.rpartition("/")[2] in self.measures
            },
            primary=results[max(self.dims)].primary,
            items={task: table for result in results.values() for task, table in result.items.items()},
            protocol={
                task: {**stamp, "dim": d} for d, result in results.items() for task, stamp in result.protocol.items()
            },
        )


def _first(embed: Embed, dim: int) -> Embed:
    """`embed` with vectors cut to their first `dim` numbers."""

    def cut(texts: Sequence[str], role: str, max_length: int | None = None, prompt: str | None = None) -> np.ndarray:
        try:
            vectors = embed(texts, role, max_length, prompt)
        except OutOfTime as stopped:
            raise OutOfTime([vector[:dim] for vector in stopped.done]) from stopped
        if vectors.shape[1] < dim:
            raise UsageError(f"eval.truncation.dims: {dim} is wider than the vectors ({vectors.shape[1]}).")
        return vectors[:, :dim]

    return cut
