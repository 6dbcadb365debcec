"""An encoder's inference on a CPU, by kernels that are faster there than those which torch chooses.

In float32 torch multiplies by MKL; oneDNN, which torch brings too, is faster on AMD's processors, and applies GELU to
the numbers while they are still in the cache. In bfloat16 torch's fused attention is slower than its three steps. And
what a layer has freed is kept for the next (heap.py). Where a gradient is wanted, under autocast, on another device,
and where a graph is traced, what is computed is what it was.

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
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import GELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from unitsphere.encoders.packed import written_out
from unitsphere.heap import keep_freed

ATTENTION = "unitsphere"
LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
LONGEST = 1024  # texts, in tokens, whose attention weights are written out
AT_ONCE = 16  # passes: with more, Python's lock, which each holds for a few percent of its time, would be waited for


def infers(x: Tensor) -> bool:
    """Whether a computation that begins with x is one that this file is for."""
    return (
        x.device.type == "cpu"
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and BF16))
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        return LINEAR(x, self.weight, self.bias, "none", [], "") if infers(x) else super().forward(x)


class Intermediate(nn.Module):
    """GELU(x W^T + b): the first half of a feed-forward block, under the names that BERT gave its parts."""

    dense: nn.Linear
    intermediate_act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (self.dense, self.intermediate_act_fn))
        if type(self.dense) is Linear and not hooked and infers(x):
            return cast(Tensor, LINEAR(x, self.dense.weight, self.dense.bias, "gelu", [], "none"))
        return cast(Tensor, self.intermediate_act_fn(self.dense(x)))


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """(B, H, T, D) each, the mask True where there is a token -> (B, T, H, D): transformers' SDPA, or its formula."""
    causal = options.get("is_causal")
    known = {"dropout", "scaling", "is_causal"}
    odd = (
        (getattr(module, "is_causal", True) if causal is None else causal)
        or options.get("dropout")
        or any(value is not None for name, value in options.items() if name not in known)
        or (attention_mask is not None and attention_mask.dtype != torch.bool)
        or key.shape != query.shape
        or key.shape[2] > LONGEST
    )
    if odd or query.dtype != torch.bfloat16 or not infers(query):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    seen = written_out(query, key, value, attention_mask, 0.0, options.get("scaling"))
    return seen.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def infer_fast(model: Any) -> None:
    """Let a transformers model infer so. Changed in place; what is saved of it is not."""
    keep_freed()
    if model.config._attn_implementation == "sdpa" and _attends_both_ways(model):
        model.config._attn_implementation = ATTENTION
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


def _attends_both_ways(model: Any) -> bool:
    """Whether its attention is transformers' interface (a model that asks for "sdpa" by name has its own), and none of
    it causal."""
    causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return bool(causal) and not any(causal) and bool(model._can_set_attn_implementation())
