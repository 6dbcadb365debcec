"""Whole attention heads dropped in training.

Paper: Zhou et al. 2020, Scheduled DropHead, https://arxiv.org/abs/2004.13342 (p 0.1 to 0.2; here p is constant)
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from unitsphere.errors import UsageError

# What BERT and its kin, DistilBERT, MPNet, GPT-NeoX, ModernBERT and decoders call the linear map behind the heads.
OUTPUT = re.compile(r"(attention\.(output\.dense|out_lin|attn\.o|dense)|attn\.(Wo|o_proj|out_proj))$")


class DropHead:
    """A forward pre-hook of the output projection: of a text's H heads each is dropped with probability p.

    With ξ_h in {0, 1} drawn once a text and layer, heads become ξ_h · head_h · H / Σ ξ; where all are dropped, nothing
    but the residual connection passes. In evaluation nothing is dropped.

    Args:
        heads: H.
        p: In [0, 1).
    """

    def __init__(self, heads: int, p: float):
        self.heads, self.p = heads, p

    def __call__(self, projection: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not projection.training:
            return None
        x, *others = inputs  # (B, T, H * d)
        kept = (torch.rand(len(x), 1, self.heads, 1, device=x.device) >= self.p).to(x.dtype)
        scaled = kept * self.heads / kept.sum(dim=2, keepdim=True).clamp(min=1)
        return (x.unflatten(-1, (self.heads, -1)) * scaled).flatten(-2), *others  # (B, T, H, d) x (B, 1, H, 1)


def add_drop_head(model: Any, p: float) -> None:
    """Let the heads of every layer be dropped in training.

    Args:
        model: A transformers model; changed in place.
        p: Probability, in [0, 1); 0 changes nothing.

    Raises:
        UsageError: p is no such probability, or no attention output projection was found in the model.
    """
    if not 0 <= p < 1:
        raise UsageError(f"encoder.drop_head={p}: a probability in [0, 1) would fit.")
    found = [module for name, module in model.named_modules() if OUTPUT.search(name)]
    if not found:
        raise UsageError(f"encoder.drop_head: no attention output projection was found in {type(model).__name__}.")
    size = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    for projection in found if p > 0 else ():  # a layer of a pruned model has fewer heads
        projection.register_forward_pre_hook(DropHead(projection.in_features // size, p))
