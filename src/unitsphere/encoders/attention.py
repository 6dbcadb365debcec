"""Attention on a CPU in tiles that stay in its cache, with dropout, in memory that grows as the texts do.

torch has no fused attention with dropout for a CPU, and in bfloat16 its fused one is slower than the three steps, but
where AMX multiplies and nothing is trained. Here softmax(q k^T s) v is computed for a few heads at a time, whose
weights fit into a core's cache, and once more in the backward pass.

Papers: Dao et al. 2022, FlashAttention, https://arxiv.org/abs/2205.14135 (recomputation); Rabe & Staats 2021,
https://arxiv.org/abs/2112.05682. Relations: F.scaled_dot_product_attention is the same without tiles of ours.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from unitsphere.encoders.cpu import AMX, BF16
from unitsphere.encoders.dropout import Draws, seed

NAME = "unitsphere"
TILE = 2**19  # attention weights: 2 MB in float32
SHORT = 64  # tokens, up to which the weights, which are then no more than q, k and v, are kept for the backward pass


def in_tiles(q: Tensor, p: float, training: bool) -> bool:
    """Whether `attend` is for such queries and such dropout: torch's attention is slower.

    Args:
        q: Queries.
        p: Of dropout.
        training: Whether the layer is in training, where a pass may be computed twice, once without gradients, and both
            must give the same.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if q.dtype == torch.bfloat16:
        return BF16 and (p > 0 or training or not AMX)
    return p > 0 and q.dtype in (torch.float32, torch.float64)


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """(B, H, T, D) each, the mask True where there is a token -> (B, T, H, D): transformers' SDPA, or `attend`."""
    causal = options.get("is_causal")
    known = {"dropout", "scaling", "is_causal"}
    odd = (
        (getattr(module, "is_causal", True) if causal is None else causal)
        or any(value is not None and value is not False for name, value in options.items() if name not in known)
        or (attention_mask is not None and attention_mask.dtype != torch.bool)
        or key.shape != query.shape
    )
    p = options.get("dropout") or 0.0
    if odd or not in_tiles(query, p, module.training):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    seen = attend(query, key, value, attention_mask, p, options.get("scaling"))
    return seen.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_fast(model: Any) -> None:
    """Let a transformers model attend so where its attention is transformers' interface, and none of it is causal.
    Changed in place; what is saved of it is not."""
    causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    both_ways = bool(causal) and not any(causal)
    # A model that asks for "sdpa" by name has an attention of its own.
    if both_ways and model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.config._attn_implementation = NAME


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, scale: float | None) -> Tensor:
    """dropout(softmax(q k^T scale)) v.

    Args:
        q, k, v: (B, H, T, D) each.
        mask: (B, 1, 1 or T, T), True where a token is seen; None for everywhere. Of a row without any, all are.
        p: Of dropout, in [0, 1).
        scale: None for D ** -0.5.

    Returns:
        (B, H, T, D).
    """
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(q, k, v, mask, p, scale or q.shape[-1] ** -0.5)


class _Attention(torch.autograd.Function):
    """It keeps q, k, v, a seed, and of short texts the weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, scale: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        unseen = None
        if mask is not None:
            unseen = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
        draws = Draws(seed(), p) if p > 0 else None
        out, kept = torch.empty_like(q), []
        for tile in tiles(q):
            weights = _weights(q[tile], k[tile], unseen, tile, scale)
            if q.shape[2] <= SHORT:
                kept.append(weights)
            dropped = weights if draws is None else draws.kept(weights).mul_(weights)
            torch.matmul(dropped, v[tile], out=out[tile])
        if draws is not None:
            out *= draws.scale
        ctx.save_for_backward(q, k, v, unseen, *kept)
        ctx.draws, ctx.factor = draws, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, unseen, *kept = ctx.saved_tensors
        draws = ctx.draws.again() if ctx.draws is not None else None
        gradient = gradient.contiguous() if draws is None else gradient * draws.scale
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for number, tile in enumerate(tiles(q)):
            weights = kept[number] if kept else _weights(q[tile], k[tile], unseen, tile, ctx.factor)
            of_weights, dropped = gradient[tile] @ v[tile].transpose(-2, -1), weights
            if draws is not None:
                drawn = draws.kept(weights)
                of_weights *= drawn
                dropped = drawn.mul_(weights)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            torch.matmul(of_scores, k[tile], out=of_q[tile])
            torch.matmul(of_scores.transpose(-2, -1), q[tile], out=of_k[tile])
            torch.matmul(dropped.transpose(-2, -1), gradient[tile], out=of_v[tile])
        return of_q.mul_(ctx.factor), of_k.mul_(ctx.factor), of_v, None, None, None


def tiles(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Texts and heads that are computed together: several whole texts, or some heads of one."""
    texts, heads, length, _ = q.shape
    at_once = max(2, TILE // length**2)  # heads: a product of one takes another, slower path in bfloat16
    count = max(1, at_once // heads)
    for text in range(0, texts, count):
        for head in range(0, heads, at_once):
            yield slice(text, text + count), slice(head, head + at_once)


def _weights(q: Tensor, k: Tensor, unseen: Tensor | None, tile: tuple[slice, slice], scale: float) -> Tensor:
    scores = (q * scale) @ k.transpose(-2, -1)
    if unseen is not None:
        scores += unseen[tile[0]]
    return torch.softmax(scores, dim=-1, out=scores)
