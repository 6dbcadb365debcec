"""The state of the last token, the only one of a causal model that has seen the whole text.

Paper: Neelakantan et al. 2022, Text and Code Embeddings, https://arxiv.org/abs/2201.10005.
"""

from torch import Tensor

from unitsphere.pooling.base import Pooling, at, last
from unitsphere.types import TokenStates


class LastTokenPooling(Pooling):
    """h_T: the last layer's state of a row's last real token, wherever the padding stands."""

    sentence_transformers = ("lasttoken",)

    def forward(self, states: TokenStates) -> Tensor:
        return at(states.hidden, last(states.mask))
