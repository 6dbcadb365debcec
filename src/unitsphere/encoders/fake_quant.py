"""Training under the rounding that int8 inference will do.

Papers: Jacob et al. 2018, https://arxiv.org/abs/1712.05877; Bengio et al. 2013, the straight-through estimator,
https://arxiv.org/abs/1308.3432; Zafrir et al. 2019, Q8BERT, https://arxiv.org/abs/1910.06188
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from unitsphere.encoders.linear import Linear


class FakeQuantLinear(nn.Linear):
    """A linear map of rounded activations and weights; gradients pass as if nothing were rounded.

    Activations: 256 levels between the least and the largest value of the pass (zero within), as int8_dynamic does and
    int8_static fixes. Weights: q s with |q| <= 127 and s = largest |w| / 127 of each output. Its parameters are those
    of the nn.Linear that it was, so it is saved as that.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded_activation(x), rounded_weight(self.weight), self.bias)


def rounded_activation(x: Tensor) -> Tensor:
    """(…, K) -> the same in 256 levels."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    q = ((x.detach() / scale).round() + zero).clamp(0, 255)
    return x + ((q - zero) * scale - x).detach()


def rounded_weight(w: Tensor) -> Tensor:
    """(N, K) -> the same in 255 levels, symmetric, for each of the N rows."""
    scale = (w.detach().abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return w + ((w.detach() / scale).round() * scale - w).detach()


def add_fake_quant(model: Any) -> None:
    """Round in every linear map of a transformers model. Changes it in place."""
    for module in model.modules():
        if type(module) in (nn.Linear, Linear):
            module.__class__ = FakeQuantLinear
