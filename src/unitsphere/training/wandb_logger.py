"""Weights & Biases: one run of theirs a run of ours, in a group a sweep."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger as LightningLogger

from unitsphere.runs import Run

TAGGED = ("loss", "pooling", "encoder", "data")


class WandbLogger(LightningLogger):
    """Lightning's logger, with what it should know of the run: its sweep, its choices, and that it is the same run
    when it is resumed. What is known only at the end comes from `unitsphere.report.to_wandb`.

    Args:
        save_dir: The run's folder.
        project: Name of the project.
        name: How the run is called.
        group: Runs that belong together; null takes the sweep's folder, or WANDB_RUN_GROUP, or the run's own name.
        tags: In addition to `loss=…`, `pooling=…`, `encoder=…`, `data=…` and the sweep's name.
        options: Of `wandb.init`.
    """

    def __init__(
        self,
        save_dir: str,
        project: str,
        name: str,
        group: str | None = None,
        tags: Sequence[str] = (),
        **options: Any,
    ):
        run = Run(Path(save_dir))
        info = run.info
        sweep = Path(info["sweep"]).resolve() if info.get("sweep") else None
        chosen = [f"{key}={info['choices'][key]}" for key in TAGGED if info["choices"].get(key)]
        if sweep is not None:
            of_sweep = f"{sweep.parent.name}/{sweep.name}"
            group, chosen = group or of_sweep, [*chosen, of_sweep]
        if not {"WANDB_RUN_ID", "WANDB_SWEEP_ID"} & os.environ.keys():  # an agent of theirs has given it one
            options["id"] = info.get("wandb_id") or secrets.token_hex(4)
            run.note(wandb_id=options["id"])
        tagged = [tag[:64] for tag in dict.fromkeys([*tags, *chosen])]  # theirs end at 64 characters
        group = group or os.environ.get("WANDB_RUN_GROUP") or run.folder.parent.name
        super().__init__(save_dir=save_dir, project=project, name=name, group=group, tags=tagged, **options)
