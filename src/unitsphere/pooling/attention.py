"""A learned weighting of the tokens.

Paper: Lin et al. 2017, A Structured Self-Attentive Sentence Embedding, https://arxiv.org/abs/1703.03130 (one hop).
"""

import torch
from torch import Tensor, nn

from unitsphere.pooling.base import Pooling, weighted
from unitsphere.types import TokenStates


class AttentionPooling(Pooling):
    """sum_t a_t h_t with a = softmax_t(q . tanh(W h_t)), W (D, D). q starts at zero: training starts at the mean."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.key.weight, std=0.02)

    def forward(self, states: TokenStates) -> Tensor:
        scores = (torch.tanh(self.key(states.hidden)) @ self.query).float()  # (B, T, D) x (D) -> (B, T)
        scores = scores.masked_fill(states.mask == 0, float("-inf"))
        return weighted(states.hidden, scores.softmax(dim=1))
