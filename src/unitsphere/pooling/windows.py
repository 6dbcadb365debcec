"""Documents longer than the encoder reads: overlapping windows, whose vectors become one by a weighted mean.

Papers: Dai & Callan 2019, overlapping passages, the first of them weighing most, https://arxiv.org/abs/1905.09217; Lin
et al. 2017, https://arxiv.org/abs/1703.03130 (learned weights, here over windows instead of tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unitsphere.errors import UsageError
from unitsphere.types import Text


@dataclass(frozen=True)
class Cut:
    """R texts as W windows, a text's windows one after the other."""

    windows: list[Text]
    owner: Tensor  # (W) which text each is of
    position: Tensor  # (W) 0 for a text's first window
    length: Tensor  # (W) tokens of the text in it, 1 or more; special tokens and the prompt are not counted


class Windows(nn.Module):
    """z = sum_i w_i z_i / sum_i w_i over a text's windows i = 0, 1, …; here w_i = 1.

    Special tokens and the prompt stand in every window; the text's own tokens go on `overlap` tokens before the end of
    the window before, and the last window ends with the text. A text of at most `size` tokens is one window, and its
    vector is what it would be without windows.

    Args:
        encoder: Whose tokens are cut.
        dim: Width of the vectors.
        size: Tokens a window, special ones and the prompt included; None is as many as the encoder reads.
        overlap: Tokens that a window shares with the one before it.

    Raises:
        UsageError: The encoder cannot read such a window, or windows would not get on.
    """

    def __init__(self, encoder: Any, dim: int, size: int | None = None, overlap: int = 32):
        super().__init__()
        self.dim, self.size, self.overlap, self.frame = dim, size or encoder.max_length, overlap, encoder.frame()
        if self.size > encoder.max_length:
            raise UsageError(f"window.size={size}: the encoder reads {encoder.max_length} tokens at most.")
        self._room(sum(self.frame))

    def split(self, texts: Sequence[Text]) -> Cut:
        """Texts of any length as windows of at most `size` tokens.

        Raises:
            UsageError: A prompt leaves no room for a window to get on.
        """
        windows, counts, lengths = [], [], []
        first, last = self.frame
        for text in texts:
            lead = max(first, text.prompt)
            own = text.ids[lead : len(text.ids) - last]
            if len(text.ids) <= self.size:
                parts = [own]
                windows.append(text)
            else:
                room = self._room(lead + last)
                starts = range(0, len(own) - self.overlap, room - self.overlap)
                parts = [own[start : start + room] for start in starts]
                ends = text.ids[:lead], text.ids[len(text.ids) - last :]
                windows += [Text(np.concatenate([ends[0], part, ends[1]]), text.prompt) for part in parts]
            counts.append(len(parts))
            lengths += [max(1, len(part)) for part in parts]
        return Cut(
            windows,
            owner=torch.arange(len(texts)).repeat_interleave(torch.tensor(counts, dtype=torch.long)),
            position=torch.cat([torch.arange(count) for count in [0, *counts]]),
            length=torch.tensor(lengths),
        )

    def forward(self, z: Tensor, cut: Cut) -> Tensor:
        """(W, D) windows' vectors to (R, D) texts' vectors, in fp32."""
        with torch.autocast(z.device.type, enabled=False):
            z, owner = z.float(), cut.owner.to(z.device)
            w, texts = self.weights(z, cut), int(cut.owner[-1]) + 1 if len(cut.owner) else 0
            total = w.new_zeros(texts).index_add(0, owner, w)
            return z.new_zeros(texts, z.shape[1]).index_add(0, owner, (w / total[owner])[:, None] * z)

    def protocol(self) -> dict[str, Any]:
        """What must be equal before two scores may be compared."""
        return {"kind": type(self).__name__, "size": self.size, "overlap": self.overlap}

    def weights(self, z: Tensor, cut: Cut) -> Tensor:
        """(W, D) windows' vectors to their weights (W), all over 0."""
        return z.new_ones(len(z))

    def _room(self, around: int) -> int:
        """Tokens of the text that a window holds beside `around` others."""
        room = self.size - around
        if not 0 <= self.overlap < room:
            raise UsageError(
                f"window.size={self.size} window.overlap={self.overlap}: special tokens and prompt take {around} of "
                "each window, and the overlap has to be 0 or more and less than what is left."
            )
        return room


class PositionWindows(Windows):
    """w_i = 1 / (1 + i): the beginning of a document says most."""

    def weights(self, z: Tensor, cut: Cut) -> Tensor:
        return 1 / (1 + cut.position.to(z))


class LengthWindows(Windows):
    """w_i = the number of the text's tokens in the window: a short last window says less."""

    def weights(self, z: Tensor, cut: Cut) -> Tensor:
        return cut.length.to(z)


class LearnedWindows(Windows):
    """w_i = exp(q . z_i), a softmax over a text's windows; q (D) starts at zero, so training starts at the mean."""

    def __init__(self, encoder: Any, dim: int, size: int | None = None, overlap: int = 32):
        super().__init__(encoder, dim, size, overlap)
        self.query = nn.Parameter(torch.zeros(dim))

    def weights(self, z: Tensor, cut: Cut) -> Tensor:
        score, owner = z @ self.query.float(), cut.owner.to(z.device)
        highest = torch.full_like(score, -torch.inf).scatter_reduce(0, owner, score.detach(), "amax")  # for exp's sake
        return (score - highest[owner]).exp()
