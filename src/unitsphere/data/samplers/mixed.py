"""A fixed share of every batch from some data sets of a mixture: general pairs beside the domain's, so that what was
known before is not forgotten.

Papers: Robins 1995, rehearsal, https://doi.org/10.1080/09540099550039318; Chen et al. 2020, Recall and Learn,
https://arxiv.org/abs/2004.12651, on forgetting in fine-tuning. Relations: task_homogeneous keeps a batch to one data
set, so that the negatives of a row are of its own; here they are of all.
"""

from collections.abc import Mapping

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.data.samplers.base import drawn, numpy_generator
from unitsphere.errors import UsageError


class Mixed:
    """Each batch has a share of rows of each named task; the other tasks' rows, in random order, fill it up.

    Those others are used once an epoch at most, which ends when they fill no batch any more; the named ones are
    shuffled anew whenever less than a share of them is left, so that no batch has a row twice. Where all are named, an
    epoch has as many batches as the rows would fill.

    Args:
        weights: Task -> its share of a batch, above 0; together at most 1.

    Raises:
        UsageError: A weight is out of range or names no task, the rows have no tasks, or a share is less than one row
            of a batch or more rows than the task has.
    """

    def __init__(self, weights: Mapping[str, float]):
        if not weights or min(weights.values()) <= 0 or sum(weights.values()) > 1 + 1e-9:
            raise UsageError(
                f"sampler.weights={dict(weights)}: shares above 0, at most 1 in all, e.g. +sampler.weights.general=0.2"
            )
        self.weights = dict(weights)

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        task = np.array([] if rows.task is None else rows.task, dtype=object)
        unknown = self.weights.keys() - set(task)
        if unknown:
            known = ", ".join(dict.fromkeys(task)) or "none; data=mixture has tasks"
            raise UsageError(f"sampler.weights: no task {sorted(unknown)[0]!r} in the data; known: {known}")
        ends = np.round(batch_size * np.cumsum([0.0, *self.weights.values()])).astype(int)  # so that 1 in all is all
        quotas = dict(zip(self.weights, np.diff(ends).tolist(), strict=True))
        members = {name: np.flatnonzero(task == name) for name in quotas}
        for name, quota in quotas.items():
            if not 0 < quota <= len(members[name]):
                raise UsageError(
                    f"sampler.weights.{name}={self.weights[name]} is {quota} rows of a batch of {batch_size}; "
                    f"1 to {len(members[name])}, as many as the task has, would fit."
                )
        rest, others = batch_size - sum(quotas.values()), np.flatnonzero(~np.isin(task, list(quotas)))
        if rest < 0 or (rest > 0) != (len(others) > 0) or len(others) < rest:
            raise UsageError(
                f"sampler.weights={self.weights} leaves {rest} rows of a batch of {batch_size} to the other tasks, "
                f"which have {len(others)}."
            )
        count = len(others) // rest if rest else len(rows) // batch_size
        draw = numpy_generator(generator)
        parts = [draw.permutation(others)[: count * rest].reshape(count, rest)]
        for name, quota in quotas.items():
            parts.append(drawn([members[name]], np.ones(1), count, quota, draw))
        return draw.permuted(np.concatenate(parts, axis=1), axis=1)  # so that every rank's part of a batch is mixed
