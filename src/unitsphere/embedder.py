"""Embedder = encoder + pooling + optional projection + optional normalisation: texts to vectors.

Code: the module order and the prompts follow https://github.com/huggingface/sentence-transformers.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unitsphere.digest import digest, tokenizer_identity
from unitsphere.encoders.fake_quant import FakeQuantLinear
from unitsphere.encoders.reader import pass_tokens
from unitsphere.encoders.side_by_side import side_by_side
from unitsphere.encoders.transformer import TransformerEncoder
from unitsphere.model import Model
from unitsphere.pooling.base import Pooling
from unitsphere.pooling.windows import Windows
from unitsphere.types import Passes, Text, Tokens


class Embedder(nn.Module, Model):
    """Texts to vectors.

    Args:
        encoder: Tokens to token states.
        pooling: Token states to one vector.
        projection_dim: Width of a linear map (no bias) after pooling; None leaves it out.
        normalize: Divide each vector by its L2 norm, so that dot product and cosine are the same.
        prompts: Name -> text put before every text of that role ("query", "document") or of that name.
        pool_prompt: Whether the pooling reads the prompt's tokens; the encoder always does. INSTRUCTOR leaves them out.
        windows: How a text longer than a window becomes one vector; None cuts texts to the encoder's limit.
        default_prompt: The name of the prompt of texts without a role; None puts nothing before them.
    """

    def __init__(
        self,
        encoder: TransformerEncoder,
        pooling: Pooling,
        projection_dim: int | None = None,
        normalize: bool = True,
        prompts: Mapping[str, str] | None = None,
        pool_prompt: bool = True,
        windows: Windows | None = None,
        default_prompt: str | None = None,
    ):
        nn.Module.__init__(self)
        self.encoder: TransformerEncoder = encoder
        self.pooling = pooling
        self.projection = nn.Linear(pooling.dim, projection_dim, bias=False) if projection_dim else None
        self.normalize = normalize
        self.prompts, self.default_prompt = dict(prompts or {}), default_prompt
        self.pool_prompt = pool_prompt
        self.windows = windows
        encoder.in_windows = windows is not None
        self.dim = projection_dim or pooling.dim
        self.nodes: dict[str, Any] = {}  # the config nodes it was built from (see artefact.py)
        self.read: dict[tuple[str, int], tuple[int, int]] = {}  # see `counting`

    def forward(self, tokens: Tokens) -> Tensor:
        """Padded tokens (B, T) to vectors (B, dim); with windows, to theirs, which `through` puts together."""
        states = self.encoder(tokens, layers=self.pooling.needs_layers)
        if not self.pool_prompt:
            last = tokens.mask.sum(dim=1) - 1  # a text that its prompt crowds out keeps its last token
            beyond = torch.arange(tokens.ids.shape[1], device=tokens.ids.device) >= tokens.prompt.minimum(last)[:, None]
            mask = states.mask * beyond
            states = replace(states, mask=mask, before=(states.mask - mask).sum(dim=1))
        z = self.pooling(states)
        if self.projection is not None:
            z = self.projection(z.to(self.projection.weight.dtype))  # poolers sum in float32
        return z if self.windows is not None else self._normalized(z)

    def through(self, passes: Passes, texts: Sequence[Text]) -> Tensor:
        if self.windows is None:
            return passes(texts, self)
        cut = self.windows.split(texts)
        z = passes(cut.windows, self).to(next(self.parameters()).device)
        return self._normalized(self.windows(z, cut))

    def each(self, compute: Callable[[np.ndarray], None], passes: Sequence[np.ndarray]) -> None:
        side_by_side(compute, passes, self.encoder.model)

    def _normalized(self, z: Tensor) -> Tensor:
        return F.normalize(z.float(), dim=-1) if self.normalize else z

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[np.ndarray]:
        """As `Model.stream`, in the mode of evaluation."""
        was_training = self.training
        self.eval()
        try:
            yield from super().stream(*args, **kwargs)
        finally:
            self.train(was_training)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    @property
    def pass_tokens(self) -> int:
        return pass_tokens(self.device, self.dtype)

    def protocol(self) -> dict[str, Any]:
        rounded = ", rounded to int8" if any(isinstance(m, FakeQuantLinear) for m in self.encoder.modules()) else ""
        return {
            "pooling": type(self.pooling).__name__,
            "normalize": self.normalize,
            "prompts": self.prompts,
            **({"default_prompt": self.default_prompt} if self.default_prompt is not None else {}),
            "pool_prompt": self.pool_prompt,
            "max_length": self.encoder.max_length,
            "precision": str(self.dtype).removeprefix("torch.") + rounded,
            **({"windows": self.windows.protocol()} if self.windows is not None else {}),
        }

    def identity(self) -> str:
        """SHA-256 over all that decides its vectors: weights and their precision, pooling, normalisation, prompts, the
        model's configuration and the tokenizer. (Their last digits depend on machine and threads, too.)"""
        encoder = self.encoder
        tokenizer = tokenizer_identity(encoder.tokenizer)
        parts = (digest(self), self.protocol(), self.nodes, encoder.model.config.to_json_string(), tokenizer)
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()
