"""Score on dev, keep the best weights (those before training are a candidate), and save what resuming needs."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from safetensors.torch import save_file

from unitsphere.errors import UsageError
from unitsphere.evaluation.score import remarks, unfinished
from unitsphere.training.sharding import whole

LAST_STEP = "last"  # a `metric` that means: do not look at dev, take the last step


class Selection(Checkpoint):
    """Writes `checkpoints/best.safetensors` (embedder weights) and `checkpoints/last.ckpt` (everything, for resuming).

    Args:
        every: Optimiser steps between two looks at dev; below 1, a share of all steps (0.5: half way and at the end).
        save_every: Steps between two `last.ckpt`; one is written at every look at dev too.
        metric: The dev metric to choose by, without `dev/`; None is the primary one of the first evaluator; "last"
            takes the last step without looking at dev.
        mode: "max" or "min".
    """

    def __init__(self, every: float = 0.5, save_every: int = 50, metric: str | None = None, mode: str = "max"):
        if every <= 0 or save_every < 1:
            raise UsageError(f"callbacks.selection: every={every} and save_every={save_every} must be positive.")
        if mode not in ("max", "min"):
            raise UsageError(f"select_mode={mode}: max or min would fit.")
        self.every, self.save_every, self.metric, self.mode = every, save_every, metric, mode
        self.looks: list[dict[str, Any]] = []  # {"step": …, "metrics": {…}} for each look at dev
        self.best_step = 0  # also of a run of no steps, where nothing is looked at
        self.selected: dict[str, Any] = {"metric": LAST_STEP, "value": None}  # what chose, and its best value
        self._rng: dict[str, Any] | None = None
        self._last_seen = 0
        self._looked = -1

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        steps = trainer.estimated_stepping_batches  # infinite where only time bounds the run
        share = float("inf") if math.isinf(steps) else max(1, round(self.every * steps))
        self._interval = share if self.every < 1 else self.every
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"])
            if "cuda" in self._rng:
                torch.cuda.set_rng_state(self._rng["cuda"])
        elif trainer.global_step == 0:
            self._look(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._last_seen:  # an accumulation step: no optimiser step was made
            return
        self._last_seen = step
        look = step % self._interval == 0 or step == trainer.estimated_stepping_batches
        if look:
            self._look(trainer, module)
        if look or step % self.save_every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self._looked != trainer.global_step:
            self._look(trainer, module)
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"looks": self.looks, "best_step": self.best_step, "selected": self.selected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.looks, self.best_step, self.selected = state["looks"], state["best_step"], state["selected"]
        self._looked = self.looks[-1]["step"] if self.looks else -1

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        mine = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            mine["cuda"] = torch.cuda.get_rng_state()
        states: list[Any] = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, mine)
        checkpoint["rng"] = states  # one a rank

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["rng"][trainer.global_rank]
        self._last_seen = checkpoint["global_step"]

    def _look(self, trainer: pl.Trainer, module: Any) -> None:
        self._looked = trainer.global_step
        if self.metric == LAST_STEP:
            self.best_step, self.selected = trainer.global_step, {"metric": LAST_STEP, "value": None}
            return
        result = module.score_dev()
        metric = self.metric or result.primary
        for line in remarks(result, module.eval_seconds):
            module.print(f"step {trainer.global_step}: dev/{line}")
        short = unfinished(result, metric)
        if short is not None:
            self._unfinished(trainer, module, short)
            return
        if metric not in result.metrics:
            raise UsageError(f"select={metric}: dev has {', '.join(result.metrics)}")
        sign = 1 if self.mode == "max" else -1
        value, past = result.metrics[metric], [sign * look["metrics"][metric] for look in self.looks]
        better = not past or sign * value > max(past)
        self.looks.append({"step": trainer.global_step, "metrics": dict(result.metrics)})
        for logger in trainer.loggers:
            logger.log_metrics({f"dev/{k}": v for k, v in result.metrics.items()}, step=trainer.global_step)
        module.print(f"step {trainer.global_step}: dev/{metric} {100 * value:.2f}{' (best so far)' * better}")
        if better:
            self.best_step = trainer.global_step
            self.selected = {"metric": f"dev/{metric}", "value": value}
            weights = whole(module.embedder)
            if trainer.is_global_zero:
                file = self._folder(trainer) / "best.safetensors"
                save_file(weights, file.with_suffix(".writing"))
                file.with_suffix(".writing").replace(file)

    def _unfinished(self, trainer: pl.Trainer, module: Any, short: str) -> None:
        """A look that was cut by `eval_seconds`: a part of dev cannot be held against the whole of it."""
        if not self.looks:
            raise UsageError(
                f"eval_seconds={module.eval_seconds:g} was not enough for dev ({short}), and a part of dev chooses no "
                "checkpoint: allow more, score less (e.g. data.dev_queries), or set select=last"
            )
        module.print(f"step {trainer.global_step}: not a candidate, as dev was not finished in time")

    def _save(self, trainer: pl.Trainer) -> None:
        file = self._folder(trainer) / "last.ckpt"
        part = file.with_suffix(".writing")
        trainer.save_checkpoint(part)  # DeepSpeed's is a folder, into which every rank writes
        if trainer.is_global_zero:
            before = file.with_suffix(".before")
            if file.is_dir():
                shutil.rmtree(before, ignore_errors=True)
                file.replace(before)
            part.replace(file)
            shutil.rmtree(before, ignore_errors=True)

    def _folder(self, trainer: pl.Trainer) -> Path:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        folder.mkdir(exist_ok=True)
        return folder


def saved_step(checkpoint: Path) -> int:
    """The optimiser step at whose end a `last.ckpt` was written."""
    one = checkpoint.is_file()
    file = checkpoint if one else checkpoint / "checkpoint" / "mp_rank_00_model_states.pt"  # DeepSpeed's
    return int(torch.load(file, map_location="cpu", weights_only=one)["global_step"])
