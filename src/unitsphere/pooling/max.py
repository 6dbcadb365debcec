"""The largest value of each dimension over the tokens, alone or beside the mean.

Paper: Conneau et al. 2017, InferSent, https://arxiv.org/abs/1705.02364.
"""

import torch
from torch import Tensor

from unitsphere.pooling.base import Pooling, weighted
from unitsphere.types import TokenStates


class MaxPooling(Pooling):
    """max_t h_t over a row's own tokens."""

    sentence_transformers = ("max",)

    def forward(self, states: TokenStates) -> Tensor:
        return largest(states)


class MeanMaxPooling(Pooling):
    """[max_t h_t ; mean_t h_t], of width 2D; in the order of sentence-transformers."""

    sentence_transformers = ("max", "mean")

    def __init__(self, dim: int):
        super().__init__(2 * dim)

    def forward(self, states: TokenStates) -> Tensor:
        return torch.cat([largest(states), weighted(states.hidden, states.mask)], dim=-1)


def largest(states: TokenStates) -> Tensor:
    """(B, D): max over each row's own tokens."""
    return states.hidden.masked_fill(states.mask[..., None] == 0, float("-inf")).amax(dim=1)
