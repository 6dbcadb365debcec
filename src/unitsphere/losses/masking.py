"""Replace some tokens of a batch, as masked-language-model training and replaced-token detection need.

Papers: Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805 (80% mask, 10% random, 10% kept); Cui et al. 2021,
whole-word masking, https://arxiv.org/abs/1906.08101. Code read: transformers' DataCollatorForLanguageModeling.
"""

from typing import Any

import torch
from torch import Tensor

from unitsphere.errors import UsageError
from unitsphere.types import Tokens


class Masking:
    """Chooses tokens, never special ones or padding, and replaces them; anew at every call.

    Args:
        tokenizer: A transformers tokenizer.
        ratio: Share of tokens (or of words) chosen, in (0, 1).
        random: Share of the chosen replaced by a random token.
        keep: Share of the chosen left as they are; the rest become the mask token.
        whole_word: Choose all pieces of a word or none.
        mask_token: Used where the tokenizer has no mask token, as a decoder's has not.

    Raises:
        UsageError: A share is out of range, or there is no mask token.
    """

    def __init__(
        self,
        tokenizer: Any,
        ratio: float = 0.15,
        random: float = 0.1,
        keep: float = 0.1,
        whole_word: bool = False,
        mask_token: str | None = None,
    ):
        if not (0 < ratio < 1 and random >= 0 and keep >= 0 and random + keep <= 1):
            raise UsageError(f"loss: mask_ratio={ratio} random={random} keep={keep} are no shares of the tokens.")
        self.ratio, self.random, self.keep, self.whole_word = ratio, random, keep, whole_word
        self.vocabulary = len(tokenizer)
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        mask = tokenizer.mask_token_id
        if mask is None and mask_token is not None:
            mask = tokenizer.convert_tokens_to_ids(mask_token)
        if mask is None or mask == tokenizer.unk_token_id:
            raise UsageError("this tokenizer has no mask token; name a token to stand for it: loss.mask_token=_")
        self.mask_id: int = mask
        # Pieces that go on with a word: WordPiece marks them; byte-level and SentencePiece mark the others.
        pieces = tokenizer.convert_ids_to_tokens(list(range(self.vocabulary)))
        if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
            inner = [bool(piece) and piece.startswith("##") for piece in pieces]
        else:
            inner = [bool(piece) and not piece.startswith(("Ġ", "▁", "Ċ")) for piece in pieces]
        self.inner = torch.tensor(inner)

    def __call__(self, tokens: Tokens) -> tuple[Tokens, Tensor]:
        """The tokens with replacements, and a (B, T) mask of the chosen ones."""
        ids, device = tokens.ids, tokens.ids.device
        usable = tokens.mask.bool() & ~torch.isin(ids, self.special.to(device))
        draw = torch.rand(ids.shape, device=device)
        if self.whole_word:
            first = usable & ~(self.inner.to(device)[ids] & usable.roll(1, dims=1))
            first[:, 0] = usable[:, 0]
            word = (first.cumsum(dim=1) - 1).clamp(min=0)  # number of the word that a token is part of
            draw = draw.gather(1, word)
        chosen = usable & (draw < self.ratio)
        kind = torch.rand(ids.shape, device=device)
        masked = chosen & (kind >= self.random + self.keep)
        swapped = chosen & (kind < self.random)
        out = ids.masked_fill(masked, self.mask_id)
        out = torch.where(swapped, torch.randint(self.vocabulary, ids.shape, device=device), out)
        return Tokens(out, tokens.mask, tokens.prompt), chosen
