"""Weights in 16 bits: half the bytes; faster where the processor multiplies in them."""

from typing import ClassVar, Literal

import torch

from unitsphere.compression.step import Context, Stage, Step
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.model import Model


class Half(Step):
    """Every weight rounded to float16 (11 significant bits, up to 65,504) or bfloat16 (8, the range of float32).

    The model computes in them, too; vectors are normalised in float32. Training that starts from it is in float32.

    Args:
        dtype: "float16" or "bfloat16".

    Raises:
        UsageError: Another type.
    """

    stage: ClassVar[Stage] = "after"

    def __init__(self, dtype: Literal["float16", "bfloat16"]):
        if dtype not in ("float16", "bfloat16"):
            raise UsageError(f"dtype={dtype}: float16 or bfloat16 would fit.")
        self.dtype = dtype

    def apply(self, model: Model, context: Context) -> Model:
        if not isinstance(model, Embedder):
            raise UsageError(f"{self.dtype}: a {type(model).__name__} has no torch weights")
        return model.to(getattr(torch, self.dtype))
