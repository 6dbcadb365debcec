"""Say loudly, during training, that the space is collapsing."""

import warnings
from typing import Any

import pytorch_lightning as pl

from unitsphere.errors import UsageError


class CollapseAlarm(pl.Callback):
    """Warns once when the mean cosine between different anchors of a batch stays over a threshold.

    Args:
        threshold: In (0, 1).
        patience: Looks in a row.
        every: Steps between two looks.
    """

    def __init__(self, threshold: float = 0.9, patience: int = 3, every: int = 10):
        if not 0 < threshold < 1:
            raise UsageError(f"callbacks.collapse.threshold={threshold}: a cosine in (0, 1) would fit.")
        self.threshold, self.patience, self.every = threshold, patience, every
        self.over = self.last_seen = 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self.last_seen or step % self.every:  # no optimiser step was made, or no look is due
            return
        self.last_seen = step
        cosine = float(trainer.callback_metrics.get("train/mean_cosine", 0.0))
        self.over = self.over + 1 if cosine > self.threshold else 0
        if self.over == self.patience:
            warnings.warn(
                f"COLLAPSE: at step {step} different texts have a mean cosine of {cosine:.3f} "
                f"(over {self.threshold} at {self.patience} looks in a row). Lower optim.lr or "
                "loss.temperature, or check that anchors and positives differ between rows.",
                stacklevel=2,
            )
