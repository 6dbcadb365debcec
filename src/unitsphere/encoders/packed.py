"""Compute a batch without its padding: the texts stand behind each other in one row, and only attention, which must not
look from one into another, takes them apart.

Everything but attention acts on each token alone, so the numbers are those of the padded batch. Attention pads within
groups of texts of like length.

Code: transformers' attention interface, https://huggingface.co/docs/transformers/attention_interface; the idea is that
of Zeng et al. 2022, effective (unpadded) BERT, https://arxiv.org/abs/2208.08124.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from unitsphere.encoders.attention import attend, in_tiles
from unitsphere.encoders.drop_head import DropHead
from unitsphere.types import Tokens, TokenStates

NAME = "unitsphere_packed"


@dataclass(frozen=True)
class Group:
    """Texts that attention pads together.

    Attributes:
        tokens: Which tokens of the row they are.
        shape: Number of texts, and the length of the longest.
        place: Index of each token in the flattened padded rectangle; None where all are equally long.
        mask: (B, 1, 1, T), True where there is a token; None likewise.
    """

    tokens: slice
    shape: tuple[int, int]
    place: Tensor | None
    mask: Tensor | None

    def padded(self, x: Tensor) -> Tensor:
        """(N, H, D) of the row -> (B, H, T, D)."""
        mine = x[self.tokens]
        if self.place is not None:
            wide = mine.new_zeros(self.shape[0] * self.shape[1], *mine.shape[1:])
            mine = wide.index_copy(0, self.place, mine)
        return mine.view(*self.shape, *mine.shape[1:]).transpose(1, 2)

    def packed(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (n, H, D), its part of the row."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self.place is None else flat[self.place]


def groups(mask: Tensor, count: int) -> list[Group]:
    """Of a mask (B, T): `count` groups of neighbouring rows, which had best be sorted by length."""
    found, start = [], 0
    for rows in mask.bool().tensor_split(min(count, len(mask))):
        lengths = rows.sum(dim=1)
        rows = rows[:, : int(lengths.max())]
        stop = start + int(lengths.sum())
        full = bool(rows.all())
        place = None if full else rows.flatten().nonzero()[:, 0]
        found.append(
            Group(slice(start, stop), (len(rows), rows.shape[1]), place, None if full else rows[:, None, None])
        )
        start = stop
    return found


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
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, D)
    parts = []
    for group in groups:
        own = group.padded(q), group.padded(k), group.padded(v)
        if in_tiles(query, dropout):
            seen = attend(*own, group.mask, dropout, scaling)
        else:
            seen = F.scaled_dot_product_attention(*own, attn_mask=group.mask, dropout_p=dropout, scale=scaling)
        parts.append(group.packed(seen))
    return torch.cat(parts)[None], None


AttentionInterface.register(NAME, attention)


def first_position(config: Any) -> int:
    """The number of a text's first position: RoBERTa and its kin count from the padding index + 1."""
    return config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0


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
    usual = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        out = model(
            input_ids=tokens.ids[there][None],
            position_ids=position[there][None],
            output_hidden_states=layers,
            groups=groups(tokens.mask, count),
        )
    finally:
        model.config._attn_implementation = usual

    def unpacked(hidden: Tensor) -> Tensor:
        wide = hidden.new_zeros(there.numel(), hidden.shape[-1])
        return wide.index_copy(0, there.flatten().nonzero()[:, 0], hidden[0]).view(*there.shape, -1)

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
