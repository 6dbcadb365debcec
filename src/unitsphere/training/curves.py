"""metrics.csv: one line a value (step, metric, value), so that a resumed run goes on in the same file."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class CSVLogger(Logger):
    """Appends to `<save_dir>/metrics.csv`.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str):
        super().__init__()
        self.file = Path(save_dir) / "metrics.csv"

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is in config.yaml already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = not self.file.exists()
        with self.file.open("a", newline="", encoding="utf-8") as out:
            lines = csv.writer(out)
            if new:
                lines.writerow(("step", "metric", "value"))
            lines.writerows((step, name, repr(float(value))) for name, value in metrics.items() if name != "epoch")


def cut(file: Path, step: int) -> None:
    """Drop what a killed run wrote behind the step from which it goes on; -1 drops all."""
    if file.exists():
        curves = pd.read_csv(file)
        curves[curves.step <= step].to_csv(file, index=False)
