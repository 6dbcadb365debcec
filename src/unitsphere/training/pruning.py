"""Ends a trial of an Optuna sweep that its pruner has given up."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from hydra_plugins.unitsphere_optuna import STUDY, storage
from unitsphere.errors import Pruned


class Pruning(pl.Callback):
    """Reports each look at dev, with the optimiser step it was made at.

    Args:
        folder: Of the sweep.
        trial: Its number in it.
        pruner: The configuration of Optuna's pruner.

    Raises:
        Pruned: In training, where the pruner says so.
    """

    def __init__(self, folder: Path, trial: int, pruner: DictConfig):
        import optuna

        study = optuna.load_study(study_name=STUDY, storage=storage(folder), pruner=instantiate(pruner))
        self.trial = optuna.trial.Trial(study, study.trials[trial]._trial_id)
        self.reported = set(study.trials[trial].intermediate_values)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        selection: Any = trainer.checkpoint_callback
        for look in selection.looks:
            if look["step"] in self.reported:
                continue
            self.reported.add(look["step"])
            metric = selection.selected["metric"].removeprefix("dev/")
            self.trial.report(look["metrics"][metric], look["step"])
            if self.trial.should_prune():
                self.trial.set_user_attr("pruned", True)
                raise Pruned(f"dev/{metric} of step {look['step']} is worse than that of most trials")
