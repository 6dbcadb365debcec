"""Matryoshka representation learning: the first d numbers of a vector are a good vector, for every d of a list.

Paper: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147 (equation 1). Relations: wraps any loss that reads
vectors; sentence-transformers' MatryoshkaLoss normalises always; `eval=[retrieval,truncation]` scores cut vectors,
before training (the plain-truncation control) and after.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.types import Embeddings, LossOutput


class Matryoshka(Loss):
    """sum_d w_d L(z[:, :d]), the cut vectors divided by their L2 norms where the embedder's are.

    Args:
        inner: L.
        dims: The d; the embedder's full width is one of them in the paper. None is that width and the powers of two
            below it, down to 32.
        weights: The w; 1 where not given.

    Raises:
        UsageError: No dims, a dim wider than the vectors, weights that do not match, or an inner loss that reads
            vectors of one width only.
    """

    dims: tuple[int, ...]
    weights: tuple[float, ...]

    def __init__(self, inner: Loss, dims: Sequence[int] | None = None, weights: Sequence[float] | None = None):
        super().__init__()
        self.inner, self.given, self.normalize = inner, weights, False
        if dims is not None:
            self._cut_at(dims)
        if not inner.any_width:
            raise UsageError(
                f"{type(inner).__name__} reads vectors of one width only, so loss=matryoshka cannot wrap it."
            )
        self.needs, self.optional, self.views = inner.needs, inner.optional, inner.views

    def _cut_at(self, dims: Sequence[int]) -> None:
        self.dims, self.weights = tuple(dims), tuple(self.given or [1.0] * len(dims))
        if not dims or min(dims) < 1 or len({*dims}) != len(dims) or len(self.weights) != len(dims):
            raise UsageError(
                f"loss.dims={list(dims)} loss.weights={self.given}: different widths, and one weight for each."
            )

    def attach(self, embedder: Any) -> None:
        self.normalize = embedder.normalize
        if not hasattr(self, "dims"):
            self._cut_at(halves(embedder.dim))
        if max(self.dims) > embedder.dim:
            raise UsageError(f"loss.dims={list(self.dims)}: the vectors are {embedder.dim} wide.")
        self.inner.attach(embedder)

    def forward(self, e: Embeddings) -> LossOutput:
        outs = {d: self.inner(cut(e, d, self.normalize)) for d in self.dims}
        total = sum(w * out.total for w, out in zip(self.weights, outs.values(), strict=True))
        return LossOutput(total, {**outs[self.dims[0]].parts, **{f"dim{d}": out.total for d, out in outs.items()}})


def halves(width: int) -> list[int]:
    """The width, and the powers of two below it down to 32.

    >>> halves(384)
    [384, 256, 128, 64, 32]
    """
    return [width, *(d for d in (2**n for n in range(20, 4, -1)) if d < width)]


def cut(e: Embeddings, dim: int, normalize: bool) -> Embeddings:
    """The first `dim` numbers of every vector, of length one where `normalize`."""

    def first(z: Tensor) -> Tensor:
        return F.normalize(z[:, :dim].float(), dim=-1) if normalize else z[:, :dim]

    positives, negatives = (z if z is None else first(z) for z in (e.positives, e.negatives))
    return replace(e, anchors=tuple(map(first, e.anchors)), positives=positives, negatives=negatives)
