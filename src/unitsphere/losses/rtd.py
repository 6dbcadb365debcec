"""Conditional replaced-token detection, DiffCSE's second objective: a discriminator that sees the sentence vector
must tell which tokens of an edited sentence are not the original ones.

Papers: Chuang et al. 2022, DiffCSE, https://arxiv.org/abs/2204.10298 (equation 2); Clark et al. 2020, ELECTRA,
https://arxiv.org/abs/2003.10555. Code read: voidism/DiffCSE (models.py, trainers.py). Defaults are that code's where it
differs from the paper. Relations: conf/loss/diffcse.yaml is Projected(SimCSE + 0.005 of this).
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unitsphere import ranks
from unitsphere.errors import UsageError
from unitsphere.losses.base import Loss
from unitsphere.losses.masking import Masking
from unitsphere.types import Embeddings, LossOutput, Tokens


class ReplacedTokenDetection(Loss):
    """mean over tokens of cross-entropy( D(x''; z)_t, [x''_t != x_t] ).

    x'' is the text x with masked tokens filled by the frozen generator, D the discriminator, a copy of the encoder with
    weights of its own and a linear head, whose embedding of the first token is overwritten by the sentence vector z.
    Both views of an anchor are judged. The gradient reaches the encoder through z alone.

    Args:
        generator: Called without arguments; returns a masked language model and its tokenizer.
        discriminator: Called without arguments; returns an encoder to start the discriminator from. None: the encoder.
        mask_ratio: Share of tokens masked: 0.30 for BERT, 0.20 for RoBERTa (the code's own default is 0.15).
        sample: Draw replacements from the generator's distribution, as the paper says; False takes the likeliest, as
            the code does.
        everywhere: The generator rewrites every token, as in the code; False rewrites masked tokens only, as in
            ELECTRA.
        count_padding: Padding counts as "not replaced", as in the code, so that the loss shrinks with padding. Padding
            is that of a chunk: `trainer.chunks=1` gives the code's.
        generator_dropout: Leave the generator's dropout on, as the code does.
    """

    needs = ("anchor",)
    views = 2
    any_width = False

    def __init__(
        self,
        generator: Callable[[], tuple[Any, Any]],
        discriminator: Callable[[], Any] | None = None,
        mask_ratio: float = 0.3,
        sample: bool = False,
        everywhere: bool = True,
        count_padding: bool = True,
        generator_dropout: bool = True,
    ):
        super().__init__()
        self.make_generator, self.make_discriminator = generator, discriminator
        self.mask_ratio, self.sample, self.everywhere = mask_ratio, sample, everywhere
        self.count_padding, self.generator_dropout = count_padding, generator_dropout

    def attach(self, embedder: Any) -> None:
        encoder = embedder.encoder
        self.generator, vocabulary = self.make_generator()
        if vocabulary.get_vocab() != encoder.tokenizer.get_vocab():
            raise UsageError(
                "the generator has another vocabulary than the encoder, so its replacements mean nothing to it. Use a "
                "generator of the same family (BERT: distilbert-base-uncased, RoBERTa: distilroberta-base)"
            )
        self.generator.requires_grad_(False)
        start = encoder if self.make_discriminator is None else self.make_discriminator()
        self.discriminator = copy.deepcopy(start.model).requires_grad_(True)
        width = self.discriminator.config.hidden_size
        if width != embedder.dim:
            raise UsageError(f"the discriminator is {width} wide, the sentence vector {embedder.dim}; they must agree.")
        if not hasattr(self.discriminator, "embeddings"):
            raise UsageError(
                f"{type(self.discriminator).__name__} has no embedding module to put the sentence vector in."
            )
        self.head = nn.Linear(width, 2)
        self.mask = Masking(encoder.tokenizer, self.mask_ratio)

    def train(self, mode: bool = True) -> "ReplacedTokenDetection":
        super().train(mode)
        if hasattr(self, "generator") and not self.generator_dropout:
            self.generator.eval()
        return self

    def forward(self, e: Embeddings) -> LossOutput:
        assert e.passes is not None
        z = torch.cat([view[e.mine] for view in e.anchors])
        texts = list(e.batch.tokens["anchor"]) * len(e.anchors)
        loss, weight, replaced, found = e.passes(texts, self.rows, z).sum(dim=0)
        parts = {"replaced": ranks.mean(replaced, weight), "found": ranks.mean(found, replaced)}
        return LossOutput(ranks.mean(loss, weight), {name: part.detach() for name, part in parts.items()})

    def rows(self, tokens: Tokens, z: Tensor) -> Tensor:
        """(B, 4): each text's summed cross-entropy, tokens counted, tokens replaced, and replaced tokens found."""
        edited = self.edit(tokens)
        replaced = edited.ids != tokens.ids
        logits = self.head(self.discriminate(edited, z)).float()  # (B, T, 2)
        counted = torch.ones_like(tokens.mask) if self.count_padding else tokens.mask
        losses = F.cross_entropy(logits.transpose(1, 2), replaced.long(), reduction="none") * counted
        found = replaced & (logits.argmax(dim=-1) == 1)
        return torch.stack([x.float().sum(dim=1) for x in (losses, counted, replaced, found)], dim=1)

    @torch.no_grad()
    def edit(self, tokens: Tokens) -> Tokens:
        """The text with tokens filled in by the generator; the first token and padding stay."""
        masked, chosen = self.mask(tokens)
        logits = self.generator(input_ids=masked.ids, attention_mask=tokens.mask).logits  # (B, T, V)
        if self.sample:
            filled = torch.distributions.Categorical(logits=logits.float()).sample()
        else:
            filled = logits.argmax(dim=-1)
        open_ = tokens.mask.bool() if self.everywhere else chosen
        open_[:, 0] = False
        return Tokens(torch.where(open_, filled, tokens.ids), tokens.mask, tokens.prompt)

    def discriminate(self, tokens: Tokens, z: Tensor) -> Tensor:
        """Hidden states (B, T, D) of the discriminator, with z (B, D) in the place of the first token's embedding."""

        def condition(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return torch.cat([z[:, None].to(output.dtype), output[:, 1:]], dim=1)

        hook = self.discriminator.embeddings.register_forward_hook(condition)
        try:
            return self.discriminator(input_ids=tokens.ids, attention_mask=tokens.mask).last_hidden_state
        finally:
            hook.remove()
