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


def multiplied_in(precision: str) -> str:
    """The key of `DTYPES` for a precision as Lightning writes it: "32-true", "bf16-mixed", "16-mixed", …"""
    return "bfloat16" if "bf16" in precision else "float16" if "16" in precision else "float32"


def forward_flops(model: Any, tokens: float, squares: float) -> float:
    """Of one pass of an encoder over sequences without padding.

    sum over sequences of (2 W T + 4 L D T^2), T tokens each: W are the weights of its linear maps, as often as each is
    used, L its layers, D its width; both attention products are over all T keys. Embeddings, normalisation and
    activations are not counted, nor a pooler, which reads one token.

    Args:
        model: A transformers encoder.
        tokens: sum of T.
        squares: sum of T^2.
    """
    return 2 * _weights(model)[0] * tokens + _attention(model) * squares


def step_flops(model: Any, tokens: float, squares: float) -> float:
    """Of a forward and a backward pass: three times `forward_flops`, without the gradients of weights that are frozen.

    Args:
        model, tokens, squares: As for `forward_flops`.
    """
    weights, trained = _weights(model)
    return 2 * (2 * weights + trained) * tokens + 3 * _attention(model) * squares


def _attention(model: Any) -> int:
    return 4 * model.config.num_hidden_layers * model.config.hidden_size


@torch.no_grad()
def _weights(model: Any) -> tuple[int, int]:
    """Of the linear maps that a token passes, as often as it does; and of those among them that are trained."""
    counts = [0, 0]

    def passed(module: nn.Linear, *_: Any) -> None:
        counts[0] += module.weight.numel()
        counts[1] += module.weight.numel() * module.weight.requires_grad

    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_hook(passed) for name, m in linear if "pooler" not in name.split(".")]
    try:
        model(input_ids=torch.full((1, 4), 5, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return counts[0], counts[1]
