"""Means over the tokens.

Papers: Reimers & Gurevych 2019, Sentence-BERT, https://arxiv.org/abs/1908.10084 (mean); Muennighoff 2022, SGPT,
https://arxiv.org/abs/2202.08904 (position-weighted mean, equation 2); Li et al. 2020, BERT-flow,
https://arxiv.org/abs/2011.05864 (first-last average).
"""

from torch import Tensor

from unitsphere.errors import UsageError
from unitsphere.pooling.base import Pooling, weighted
from unitsphere.types import TokenStates


class MeanPooling(Pooling):
    """sum_t m_t h_t / sum_t m_t."""

    sentence_transformers = ("mean",)

    def forward(self, states: TokenStates) -> Tensor:
        return weighted(states.hidden, states.mask)


class WeightedMeanPooling(Pooling):
    """sum_t t h_t / sum_t t, t = 1, 2, ... over a row's own tokens, those of a prompt that is not pooled counted: later
    tokens, which in a causal model have seen more, weigh more."""

    sentence_transformers = ("weightedmean",)

    def forward(self, states: TokenStates) -> Tensor:
        position = states.mask.cumsum(dim=1)
        if states.before is not None:
            position = position + states.before[:, None]
        return weighted(states.hidden, position * states.mask)


class FirstLastMeanPooling(Pooling):
    """The mean over tokens of (h^first + h^last) / 2.

    Args:
        dim: The encoder's width.
        first: Which layer is the first: 1 is the first transformer layer, as in the SimCSE code today (BERT-base
            60.73 on the seven STS tasks); 0 is the embedding layer, as in the paper's table (56.70).
    """

    needs_layers = True

    def __init__(self, dim: int, first: int = 1):
        super().__init__(dim)
        self.first = first

    def forward(self, states: TokenStates) -> Tensor:
        layers = states.layers
        assert layers is not None
        if self.first >= len(layers):
            raise UsageError(f"pooling.first={self.first}: the encoder has layers 0 to {len(layers) - 1}.")
        return weighted((layers[self.first] + layers[-1]) / 2, states.mask)
