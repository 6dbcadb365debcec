"""Compute a batch without its padding: the texts stand behind each other in one row, and only attention, which must not
look from one into another, takes them apart.

Everything but attention acts on each token alone, so the numbers are those of the padded batch. Attention pads within
groups of texts of like length. The row is filled up by at most 1/32, so that a long training has few different lengths:
for each of them oneDNN makes its products' kernels anew, a millisecond each, and keeps a thousand of them.

Code: transformers' attention interface, https://huggingface.co/docs/transformers/attention_interface; the idea is that
of Zeng et al. 2022, effective (unpadded) BERT, https://arxiv.org/abs/2208.08124.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface

from unitsphere.encoders.attention import attend, in_tiles
from unitsphere.encoders.drop_head import DropHead
from unitsphere.types import Tokens, TokenStates

NAME = "unitsphere_packed"


@dataclass(frozen=True)
class Rectangle:
    """The numbers of some texts (B, H, T, D), and the rows of D numbers in it.

    Attributes:
        shape: B, H, T.
        rows: Which row of all tokens' (N H, D) stands in each of the rectangle's; in the padding the text's first.
        place: In which of the rectangle's each row of the group's own tokens stands.
        hollow: In which none does.
    """

    shape: tuple[int, int, int]
    rows: Tensor
    place: Tensor
    hollow: Tensor


@dataclass(frozen=True)
class Group:
    """Texts that attention pads together.

    Attributes:
        token: (B, T), of the length T of the longest: which token stands there; in the padding the text's first.
        place: Where in its flattened form each of the group's tokens stands.
        hollow: Where none does.
        mask: (B, 1, 1, T), True where there is a token; None where all texts are equally long.
    """

    token: Tensor
    place: Tensor
    hollow: Tensor
    mask: Tensor | None

    def rectangle(self, heads: int) -> Rectangle:
        """Of each token's numbers in so many heads."""
        head, (texts, length) = torch.arange(heads, device=self.token.device), self.token.shape

        def of_heads(places: Tensor) -> Tensor:
            first = places // length * (heads * length) + places % length
            return (first[:, None] + head * length).flatten()

        rows = (self.token[:, None] * heads + head[:, None]).flatten()
        return Rectangle((texts, heads, length), rows, of_heads(self.place), of_heads(self.hollow))


def groups(mask: Tensor, count: int) -> list[Group]:
    """Of a mask (B, T): `count` groups of neighbouring rows, which had best be sorted by length."""
    found, start = [], 0
    for there in mask.bool().tensor_split(min(count, len(mask))):
        lengths = there.sum(dim=1)
        there = there[:, : int(lengths.max())]
        place, hollow = (x.flatten().nonzero()[:, 0] for x in (there, ~there))
        first = start + lengths.cumsum(dim=0) - lengths
        token = first.clamp(max=start + len(place) - 1)[:, None].repeat(1, there.shape[1])
        token[there] = torch.arange(start, start + len(place), device=mask.device)
        start += len(place)
        found.append(Group(token, place, hollow, there[:, None, None] if len(hollow) else None))
    return found


def apart(x: Tensor, rectangles: Sequence[Rectangle]) -> tuple[Tensor, ...]:
    """(N, H, D) of all tokens -> (B, H, T, D) of each rectangle, with a token's numbers in the padding, too."""
    flat = x.reshape(-1, x.shape[-1])
    return tuple(flat.index_select(0, r.rows).view(*r.shape, x.shape[-1]) for r in rectangles)


def joined(parts: Sequence[Tensor], rectangles: Sequence[Rectangle], count: int) -> Tensor:
    """(B, H, T, D) of each rectangle -> (count, H, D) of all tokens; zeros for those that are in none."""
    _, heads, _, dim = parts[0].shape
    flat = [x.reshape(-1, dim).index_select(0, r.place) for x, r in zip(parts, rectangles, strict=True)]
    rest = parts[0].new_zeros(count * heads - sum(map(len, flat)), dim)
    return torch.cat([*flat, rest]).view(count, heads, dim)


class Apart(torch.autograd.Function):
    """`apart` with its gradient, which nothing of the padding has a part in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rectangles: Sequence[Rectangle]) -> tuple[Tensor, ...]:
        ctx.rectangles, ctx.count = rectangles, len(x)
        return apart(x, rectangles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return joined(gradients, ctx.rectangles, ctx.count), None


class Joined(torch.autograd.Function):
    """`joined` with its gradient, which is 0 in the padding."""

    @staticmethod
    def forward(ctx: Any, count: int, rectangles: Sequence[Rectangle], *parts: Tensor) -> Tensor:
        ctx.rectangles = rectangles
        return joined(parts, rectangles, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = apart(gradient, ctx.rectangles)
        for x, r in zip(parts, ctx.rectangles, strict=True):
            x.view(-1, x.shape[-1]).index_fill_(0, r.hollow, 0)
        return None, None, *parts


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    groups: list[Group] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a row: (1, H, N, D) -> (1, N, H, D)."""
    assert groups is not None
    if key.shape != query.shape:
        raise ValueError("heads that share keys and values")
    rectangles = [group.rectangle(query.shape[1]) for group in groups]
    padded = (Apart.apply(x[0].transpose(0, 1), rectangles) for x in (query, key, value))
    parts = []
    for group, q, k, v in zip(groups, *padded, strict=True):
        if in_tiles(query, dropout, module.training):
            parts.append(attend(q, k, v, group.mask, dropout, scaling))
        else:
            parts.append(F.scaled_dot_product_attention(q, k, v, group.mask, dropout, scale=scaling))
    return Joined.apply(query.shape[2], rectangles, *parts)[None], None


AttentionInterface.register(NAME, attention)


def first_position(config: Any) -> int:
    """The number of a text's first position: RoBERTa and its kin count from the padding index + 1."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


def filled(count: int) -> int:
    """The next number of six binary digits and zeros after them.

    >>> [filled(n) for n in (33, 1000, 1900)]
    [33, 1008, 1920]
    """
    step = 2 ** max(0, count.bit_length() - 6)
    return -(-count // step) * step


def packed(model: Any, tokens: Tokens, count: int, layers: bool = False) -> TokenStates:
    """What the model makes of padded tokens, computed without the padding.

    Args:
        model: A transformers encoder with attention in both directions.
        tokens: Padded on the right.
        count: Groups for attention.
        layers: Whether the states of all layers are wanted.
    """
    there = tokens.mask.bool()
    position = (first_position(model.config) + torch.arange(there.shape[1], device=there.device)).expand_as(there)
    row = int(there.sum())
    some = torch.arange(filled(row), device=there.device) % row  # any tokens fill it up: attention leaves them out
    usual = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        out = model(
            input_ids=tokens.ids[there][None, some],
            position_ids=position[there][None, some],
            output_hidden_states=layers,
            groups=groups(tokens.mask, count),
        )
    finally:
        model.config._attn_implementation = usual

    def unpacked(hidden: Tensor) -> Tensor:
        wide = hidden.new_zeros(there.numel(), hidden.shape[-1])
        return wide.index_copy(0, there.flatten().nonzero()[:, 0], hidden[0, :row]).view(*there.shape, -1)

    states = tuple(map(unpacked, out.hidden_states)) if layers else None
    return TokenStates(unpacked(out.last_hidden_state), tokens.mask, states)


@torch.no_grad()
def can_be_packed(model: Any) -> bool:
    """Whether the model gives the same when it is packed: tried, without dropout, on four made-up texts."""
    config = model.config
    local = any(getattr(config, key, None) for key in ("sliding_window", "local_attention"))
    by_text = any(isinstance(hook, DropHead) for m in model.modules() for hook in m._forward_pre_hooks.values())
    if local or by_text or model.is_activation_checkpointing:
        return False
    mask = (torch.arange(9) < torch.tensor([[3], [5], [9], [9]])).long()
    pad = config.pad_token_id or 0
    ids = torch.arange(36).view(4, 9) % (config.vocab_size - 1)
    ids = torch.where(mask.bool(), ids + (ids >= pad), pad)
    device = next(model.parameters()).device
    tokens = Tokens(ids.to(device), mask.to(device), torch.zeros(4, dtype=torch.long, device=device))
    was_training = model.training
    model.eval()
    try:
        states = packed(model, tokens, 2).hidden[mask.bool()]
        usual = model(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state[mask.bool()]
    except (TypeError, ValueError, AssertionError, RuntimeError):  # no position_ids, no attention interface, …
        return False
    finally:
        model.train(was_training)
    return torch.allclose(states, usual, rtol=0, atol=1e-3 * float(usual.abs().max()))
