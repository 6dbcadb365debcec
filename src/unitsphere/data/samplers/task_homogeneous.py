"""One task a batch.

Paper: Su et al. 2023, INSTRUCTOR, https://arxiv.org/abs/2212.09741.
"""

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.data.samplers.base import checked_temperature, drawn, members, numpy_generator, tempered
from unitsphere.errors import UsageError


class TaskHomogeneous:
    """Each batch holds rows of one task, so that a task's negatives are its own.

    Tasks are drawn with probability n_t^(1 / temperature) / sum: 1 in proportion to their rows, large equally often. An
    epoch has as many batches as the rows would fill; a task that runs out is shuffled anew.

    Args:
        temperature: 1 or more.

    Raises:
        UsageError: The rows have no tasks, or a task does not fill one batch.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = checked_temperature(temperature)

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        if rows.task is None:
            raise UsageError("sampler=task_homogeneous needs data of several tasks: data=mixture")
        tasks = members(rows.task)
        for name, of_task in tasks.items():
            if len(of_task) < batch_size:
                raise UsageError(f"task {name!r} does not fill one batch of {batch_size}; lower data.batch_size.")
        groups, draw = list(tasks.values()), numpy_generator(generator)
        return drawn(groups, tempered(groups, self.temperature), len(rows) // batch_size, batch_size, draw)
