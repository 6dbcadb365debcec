"""The state of the first token, plain or through a new MLP.

Papers: Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805; Gao et al. 2021, SimCSE,
https://arxiv.org/abs/2104.08821 (section 6.3 and Table 6: the MLP, kept or used in training only).
"""

import torch
from torch import Tensor, nn

from unitsphere.pooling.base import Pooling, at, first
from unitsphere.types import TokenStates


class CLSPooling(Pooling):
    """h_1: the last layer's state of the first token."""

    sentence_transformers = ("cls",)

    def forward(self, states: TokenStates) -> Tensor:
        return at(states.hidden, first(states.mask))


class CLSMLPPooling(Pooling):
    """tanh(W h_1 + b), with W (D, D) new and random: it is not the checkpoint's own pooler.

    Args:
        dim: The encoder's width D.
        train_only: Use the MLP in training and h_1 alone in evaluation, as unsupervised SimCSE does; supervised
            SimCSE keeps it (False).
    """

    def __init__(self, dim: int, train_only: bool = False):
        super().__init__(dim)
        self.train_only = train_only
        self.dense = nn.Linear(dim, dim)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: TokenStates) -> Tensor:
        h = at(states.hidden, first(states.mask))
        return h if self.train_only and not self.training else torch.tanh(self.dense(h))
