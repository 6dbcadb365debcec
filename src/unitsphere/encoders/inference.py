"""An encoder's inference on a CPU, by kernels that are faster there than those which torch chooses.

In float32 torch multiplies by MKL; oneDNN, which torch brings too, is faster on AMD's processors, and applies GELU to
the numbers while they are still in the cache. And what a layer has freed is kept for the next (heap.py). Where a
gradient is wanted, under autocast, on another device, and where a graph is traced, what is computed is what it was.
Attention has a file of its own (attention.py).

Threads that share a pass wait for each other after every operation: several passes at a time do not.

Code: the operator is what torch's inductor calls, torch/_inductor/mkldnn_lowerings.py of
https://github.com/pytorch/pytorch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from unitsphere.encoders.attention import BF16
from unitsphere.heap import keep_freed

LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
AT_ONCE = 16  # passes: with more, Python's lock, which each holds for a few percent of its time, would be waited for


def computed_here(x: Tensor) -> bool:
    """Whether a computation that begins with x is one that this file is for."""
    return (
        x.device.type == "cpu"
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and BF16))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def infers(x: Tensor) -> bool:
    """Whether it is, and no gradient can be wanted."""
    return computed_here(x) and not torch.is_grad_enabled()


class _Product(torch.autograd.Function):
    """x W^T + b of (…, K), (N, K) and (N,), with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return LINEAR(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            LINEAR(gradient.contiguous(), weight.t(), None, "none", [], "") if of_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None,  # in which MKL is as fast
            rows.sum(dim=0) if of_bias else None,
        )


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if infers(x):
            return LINEAR(x, self.weight, self.bias, "none", [], "")
        return _Product.apply(x, self.weight, self.bias) if computed_here(x) else super().forward(x)


class Intermediate(nn.Module):
    """GELU(x W^T + b): the first half of a feed-forward block, under the names that BERT gave its parts."""

    dense: nn.Linear
    intermediate_act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (self.dense, self.intermediate_act_fn))
        if type(self.dense) is Linear and not hooked and infers(x):
            return cast(Tensor, LINEAR(x, self.dense.weight, self.dense.bias, "gelu", [], "none"))
        return cast(Tensor, self.intermediate_act_fn(self.dense(x)))


def infer_fast(model: Any) -> None:
    """Let a transformers model infer so. Changed in place; what is saved of it is not."""
    keep_freed()
    if LINEAR is None:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        parts = dict(module.named_children())
        if parts.keys() == {"dense", "intermediate_act_fn"} and type(parts["intermediate_act_fn"]) is GELUActivation:
            module.__class__ = Intermediate


def side_by_side(compute: Callable[[np.ndarray], None], passes: Sequence[np.ndarray], model: nn.Module) -> None:
    """compute(some) for every pass through a model, without gradients: on a CPU up to `AT_ONCE` at a time, which share
    torch's threads.

    The first is computed alone, so that what a model makes with it (tables of positions) is there for the others. Fewer
    passes than threads are computed one after another, each on all threads. A thread of the caller's that first uses
    torch meanwhile keeps a share of the threads.
    """

    def without_gradients(some: np.ndarray, inference: bool = torch.is_inference_mode_enabled()) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            compute(some)

    threads = torch.get_num_threads()
    share = -(-threads // AT_ONCE)
    several = threads // share
    autocast = torch.is_autocast_enabled("cpu")  # of which a new thread knows nothing
    there = next(model.parameters()).device.type == "cpu"
    if not there or several == 1 or len(passes) <= several or autocast or _by_length(model):
        for some in passes:
            without_gradients(some)
        return
    without_gradients(passes[0])
    try:
        with ThreadPoolExecutor(several, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            for _ in pool.map(without_gradients, passes[1:]):
                pass
    finally:
        torch.set_num_threads(threads)  # what threads begin with that come later


def _by_length(model: nn.Module) -> bool:
    """Whether it sets frequencies of its positions anew for the length of every pass."""
    kinds = str([getattr(module, "rope_type", None) for module in model.modules()])
    return "dynamic" in kinds or "longrope" in kinds
