"""Training steps of ours, through the path that every run takes."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from unitsphere.bench.meter import Meter
from unitsphere.bench.peak import multiplied_in
from unitsphere.cli.train import RUN_OF_RANKS, joined
from unitsphere.errors import UsageError
from unitsphere.runs import Run
from unitsphere.training.run import train


class Clock(pl.Callback):
    """Times the steps after the first few.

    Args:
        warm: How many these are.
        steps: How many are timed.
    """

    def __init__(self, warm: int, steps: int):
        self.warm, self.last = warm, warm + steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        embedder = pl_module.embedder
        self.meter = Meter(embedder.encoder.model, embedder, lambda args: args[0].mask)
        self.precision, self.ranks = str(trainer.precision), trainer.world_size

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.span = self.meter.model()
        self.span.__enter__()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.span.__exit__(None, None, None)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == self.warm and not self.meter.on:
            self.meter.start()
        elif trainer.global_step == self.last and self.meter.on:
            self.meter.stop()


def check_steps(steps: int, warm: int) -> None:
    """Whether there are steps to time, and one before them, at whose end the clock starts.

    Raises:
        UsageError: There are none.
    """
    if steps < 1 or warm < 1:
        raise UsageError(f"bench.options.steps={steps} and warm={warm}: 1 or more would fit.")


def measure(config: DictConfig, steps: int, warm: int) -> dict[str, Any]:
    """Run `warm + steps` steps, report on the last `steps`, and take one more, after which the checkpoint is written.
    Memory is that of one rank, where there are several.

    Args:
        config: Of a run of train.yaml, resolved.

    Raises:
        UsageError: There is no such step.
    """
    check_steps(steps, warm)
    clock = Clock(warm, steps)
    config.trainer.max_steps = warm + steps + 1
    further = joined()
    if further is not None:
        train(config, further, [clock])  # which ends this process
    with TemporaryDirectory() as place:
        run = Run.create(Path(place), "run")
        os.environ[RUN_OF_RANKS] = str(run.folder)
        train(config, run, [clock])
    rows = config.data.batch_size * config.trainer.accumulate_grad_batches
    reads = 1 if config.trainer.cache_tokens is None else 2
    if clock.ranks > 1:  # the meter has counted what this one read
        numbers = clock.meter.rate("samples", rows * steps)
    else:
        numbers = clock.meter.numbers("samples", rows * steps, trains=True, reads=reads)
    return {**numbers, "dtype": multiplied_in(clock.precision)}
