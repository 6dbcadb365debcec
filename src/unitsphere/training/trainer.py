"""Lightning's Trainer with the settings that decide whether two runs give equal numbers made explicit."""

import os
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig


class Trainer(pl.Trainer):
    """Args:
    threads: CPU threads of one process. Numbers are equal to the last digit only under an equal count.
    chunks: Length-sorted passes in which a batch is encoded (see training/chunks.py); `training/module.py` reads it.
    kwargs: As for `pytorch_lightning.Trainer`.
    """

    def __init__(self, threads: int, chunks: int, **kwargs: Any):
        torch.set_num_threads(threads)
        self.chunks = chunks
        super().__init__(**kwargs)


def make_concrete(config: DictConfig) -> None:
    """Replace every `auto` of the trainer's settings by what this machine gives, so that the saved config has it."""
    gpu = torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")
    automatic = {
        "threads": cpu_threads(),
        "precision": "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true",
        "chunks": 1 if gpu else 4,
    }
    for key, value in automatic.items():
        if config.trainer[key] == "auto":
            config.trainer[key] = value


def cpu_threads() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
