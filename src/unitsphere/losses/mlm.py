"""Masked-language-model training: continued pretraining on a domain's texts (DAPT), pretraining from scratch, and,
for decoders, masked next-token prediction.

Papers: Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805; Gururangan et al. 2020, Don't Stop Pretraining,
https://arxiv.org/abs/2004.10964; BehnamGhader et al. 2024, LLM2Vec, https://arxiv.org/abs/2404.05961 (next_token).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unitsphere import ranks
from unitsphere.losses.base import Loss
from unitsphere.losses.masking import Masking
from unitsphere.types import Embeddings, LossOutput, Tokens


class MaskedLM(Loss):
    """-mean over chosen tokens of log p(token | the text with replacements).

    Reads every text of a row: anchor, positive and negatives. The encoder under training is the model's base, and the
    head is saved with it, so that the result serves as encoder and as a generator of replaced tokens. The head saved is
    that of the last step: `select=last` takes the encoder of the same step.

    Args:
        language_model: Called with the encoder; returns a transformers model whose base is the encoder's.
        mask_ratio: Share of tokens chosen: BERT 0.15.
        random: Share of the chosen that become a random token.
        keep: Share of the chosen left as they are.
        whole_word: Choose whole words.
        next_token: Predict a token from the state before it, as a decoder's head does.
        mask_token: Stands for the mask token where the tokenizer has none.
    """

    needs = ("anchor",)
    optional = ("positive", "negative")
    views = 0
    any_width = False

    def __init__(
        self,
        language_model: Callable[..., Any],
        mask_ratio: float = 0.15,
        random: float = 0.1,
        keep: float = 0.1,
        whole_word: bool = False,
        next_token: bool = False,
        mask_token: str | None = None,
    ):
        super().__init__()
        self.make, self.next_token = language_model, next_token
        self.masking = partial(
            Masking, ratio=mask_ratio, random=random, keep=keep, whole_word=whole_word, mask_token=mask_token
        )

    def attach(self, embedder: Any) -> None:
        self.mask = self.masking(embedder.encoder.tokenizer)
        self.model = self.make(embedder.encoder)

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.passes is not None
        texts = [text for column in e.batch.tokens.values() for text in column]
        sums, counts, right = e.passes(texts, self.rows).sum(dim=0)
        accuracy = ranks.mean(right, counts).detach()
        return LossOutput(ranks.mean(sums, counts), {"mlm_accuracy": accuracy})

    def rows(self, tokens: Tokens) -> Tensor:
        """(B, 3): each text's summed cross-entropy, number of chosen tokens, and number of them predicted."""
        replaced, chosen = self.mask(tokens)
        where = chosen
        if self.next_token:
            chosen[:, 0] = False
            where = chosen.roll(-1, dims=1)
        logits, target = logits_at(self.model, replaced, where), tokens.ids[chosen]  # (K, V), (K)
        losses = F.cross_entropy(logits.float(), target, reduction="none")
        right = (logits.argmax(dim=-1) == target).float()
        of_token = torch.stack([losses, torch.ones_like(losses), right], dim=1)  # (K, 3)
        return of_token.new_zeros(len(chosen), 3).index_add(0, chosen.nonzero()[:, 0], of_token)


def logits_at(model: Any, tokens: Tokens, where: Tensor) -> Tensor:
    """A language model's logits (K, V) at the K positions where `where` (B, T) is true, row by row: the head, which
    costs as much as several layers, then reads those states only."""

    def only(module: Any, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[where][None]
        return output

    hook = model.base_model.register_forward_hook(only)
    try:
        return model(input_ids=tokens.ids, attention_mask=tokens.mask).logits[0]
    finally:
        hook.remove()
