"""Linear maps on a CPU by kernels that are faster there than those which torch chooses.

In float32 torch multiplies by MKL, which suits training on Intel's processors. For x W^T of few rows, and on AMD's also
of many and for the gradient of x, oneDNN, which torch brings too, is faster, and applies GELU, where no gradient is
wanted, to the numbers while they are still in the cache; so it is in bfloat16 everywhere. Under autocast, on another
device, and where a graph is traced, what is computed is what it was. Gradients of gradients and torch.func are not
there for it. Attention has a file of its own (attention.py).

Code: the operator is what torch's inductor calls, torch/_inductor/mkldnn_lowerings.py of
https://github.com/pytorch/pytorch.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from unitsphere.encoders.cpu import BF16, MKL

LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def computed_here(x: Tensor) -> bool:
    """Whether a computation that begins with x is one that this file is for."""
    return (
        x.device.type == "cpu"
        and (
            (x.dtype == torch.float32 and not (MKL and torch.is_grad_enabled())) or (x.dtype == torch.bfloat16 and BF16)
        )
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def infers(x: Tensor) -> bool:
    """Whether it is, and no gradient can be wanted."""
    return computed_here(x) and not torch.is_grad_enabled()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(Tensor, LINEAR(x, weight, bias, "none", [], ""))


class Product(torch.autograd.Function):
    """x W^T + b of (…, K), (N, K) and (N,), with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _product(gradient.contiguous(), weight.t(), None) if of_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None,  # in which MKL is as fast
            rows.sum(dim=0) if of_bias else None,
        )


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if not computed_here(x) or x.dtype != self.weight.dtype or x.shape[-1] != self.in_features:
            return super().forward(x)
        multiply = Product.apply if torch.is_grad_enabled() else _product
        return multiply(x, self.weight, self.bias)


class Intermediate(nn.Module):
    """GELU(x W^T + b): the first half of a feed-forward block, under the names that BERT gave its parts."""

    dense: nn.Linear
    intermediate_act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (self.dense, self.intermediate_act_fn))
        if type(self.dense) is Linear and not hooked and infers(x):
            return cast(Tensor, LINEAR(x, self.dense.weight, self.dense.bias, "gelu", [], "none"))
        return cast(Tensor, self.intermediate_act_fn(self.dense(x)))


def multiply_fast(model: Any) -> None:
    """Let a transformers model multiply so. Changed in place; what is saved of it is not."""
    if LINEAR is None:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        parts = dict(module.named_children())
        if parts.keys() == {"dense", "intermediate_act_fn"} and type(parts["intermediate_act_fn"]) is GELUActivation:
            module.__class__ = Intermediate
