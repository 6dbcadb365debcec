"""What this machine multiplies at most, and what a model needs: their ratio is the model FLOP utilisation (MFU).

Paper: Chowdhery et al. 2022, PaLM, https://arxiv.org/abs/2204.02311 (MFU, appendix B).
"""

import time
from typing import Any

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def measure(
    config: Any = None, dtype: str = "float32", size: int | None = None, seconds: float = 1.0
) -> dict[str, float]:
    """FLOP/s of the fastest of many multiplications of two square matrices: 2 size^3 a multiplication.

    Args:
        config: Not read.
        dtype: Of the matrices, "float32", "bfloat16" or "float16".
        size: Rows; None is 2,048 on a CPU and 8,192 on a GPU.
        seconds: How long to go on.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = size or (8192 if device == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ b
        synchronized()
        best = min(best, time.perf_counter() - start)
    return {"FLOP/s": 2 * size**3 / best}


def synchronized() -> float:
    """Seconds of a clock, after what was begun on a GPU has ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def forward_flops(model: Any, tokens: float, squares: float) -> float:
    """Of one pass of an encoder over sequences without padding.

    sum over sequences of (2 W T + 4 L D T^2), T tokens each: W are the weights of its linear maps, L its layers, D its
    width; both attention products are over all T keys. Embeddings, normalisation and activations are not counted, nor
    a pooler, which reads one token. A backward pass that has every gradient takes twice as many.

    Args:
        model: A transformers encoder.
        tokens: sum of T.
        squares: sum of T^2.
    """
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    weights = sum(m.weight.numel() for name, m in linear if "pooler" not in name.split("."))
    attention = 4 * model.config.num_hidden_layers * model.config.hidden_size
    return 2 * weights * tokens + attention * squares
