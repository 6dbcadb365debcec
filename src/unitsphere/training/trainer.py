"""Lightning's Trainer with the settings that decide whether two runs give equal numbers made explicit."""

import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.accelerators import CPUAccelerator

from unitsphere.encoders.cpu import BF16
from unitsphere.errors import UsageError
from unitsphere.process import cpu_threads
from unitsphere.types import Batch


class Trainer(pl.Trainer):
    """Args:
    threads: CPU threads of one process. Numbers are equal to the last digit only under an equal count.
    chunks: Length-sorted passes in which a batch is encoded (see training/chunks.py); `training/module.py` reads it.
    packed: Compute a batch without its padding, where the encoder can (see encoders/packed.py); `chunks` are then the
        groups of attention.
    cache_tokens: The gradient cache: padded tokens a pass, each computed again in the backward pass, so that the memory
        of a step does not grow with the batch; a third to a half more time. None: `chunks` passes, kept in memory.
    kwargs: As for `pytorch_lightning.Trainer`.
    """

    def __init__(self, threads: int, chunks: int, packed: bool = False, cache_tokens: int | None = None, **kwargs: Any):
        torch.set_num_threads(threads)
        if chunks < 1 or (cache_tokens is not None and cache_tokens < 1):
            raise UsageError(f"trainer: chunks={chunks} and cache_tokens={cache_tokens} must be 1 or more (or null).")
        self.chunks, self.packed, self.cache_tokens = chunks, packed, cache_tokens
        super().__init__(**kwargs)
        plugin: Any = self.precision_plugin
        plugin.convert_input = _unchanged
        if str(self.precision).startswith("bf16") and isinstance(self.accelerator, CPUAccelerator) and not BF16:
            warnings.warn(
                f"trainer.precision={self.precision}: this processor has no bfloat16 arithmetic, so a step takes many "
                "times as long as with 32-true.",
                stacklevel=2,
            )


def _unchanged(batch: Batch) -> Batch:
    """In place of a precision plugin's own, which writes into dataclasses, and batches are frozen: token ids have no
    precision, and labels and scores are compared in float32."""
    return batch


def make_concrete(config: DictConfig, at_once: int = 1) -> None:
    """Replace every `auto` of the trainer's settings by what this machine gives, so that the saved config has it.

    Args:
        config: Changed in place.
        at_once: Runs that share the cores; -1 is one a core.
    """
    gpu = torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")
    automatic = {
        "threads": max(1, cpu_threads() // at_once) if at_once > 0 else 1,
        "precision": "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true",
        "chunks": 1 if gpu else 4,
        "packed": not gpu,
    }
    for key, value in automatic.items():
        if config.trainer[key] == "auto":
            config.trainer[key] = value
