"""An encoder that reads two texts at once and scores how well they fit, for training; encoders/cross_encoder.py applies
what came of it.

Paper: Nogueira & Cho 2019, https://arxiv.org/abs/1901.04085. Code: https://github.com/huggingface/transformers
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from unitsphere.encoders.transformer import TransformerEncoder
from unitsphere.errors import UsageError
from unitsphere.types import Text, Tokens


class PairScorer(nn.Module):
    """transformers' sequence classifier with one logit, whose base *is* the encoder's model.

    Saving the encoder saves it. Pooler and classifier on top are the checkpoint's where it has them, else new ones.

    Args:
        encoder: Of any architecture that transformers has such a classifier for. Its `max_length` is a pair's.

    Raises:
        UsageError: There is no such classifier, or the tokenizer is one in Python, which does not say whose each token
            of a pair is.
    """

    def __init__(self, encoder: TransformerEncoder):
        super().__init__()
        tokenizer: Any = encoder.tokenizer
        if not tokenizer.is_fast:
            raise UsageError(
                f"{type(tokenizer).__name__} is a tokenizer in Python; a cross-encoder takes one with tokenizer.json."
            )
        self.model = _classifier(encoder)
        encoder.headed = (self.model,)
        tokenizer.model_max_length = encoder.max_length  # saved: whoever loads the model cuts pairs as training did
        alone, pair = tokenizer("a"), tokenizer("a", "b")
        of_text, ids = pair.sequence_ids(0), pair["input_ids"]  # None at a special token, else 0 or 1
        inner = [i for i, text in enumerate(alone.sequence_ids(0)) if text == 0]
        self.before, self.after = inner[0], len(alone["input_ids"]) - 1 - inner[-1]  # special tokens of a text alone
        first, second = of_text.index(0), of_text.index(1)
        middle, last = first + of_text.count(0), second + of_text.count(1)
        self.specials = [np.asarray(part, dtype=np.int32) for part in (ids[:first], ids[middle:second], ids[last:])]
        self.room = encoder.max_length - sum(map(len, self.specials))
        self.has_types = "token_type_ids" in tokenizer.model_input_names

    def join(self, first: Iterable[Text], second: Iterable[Text]) -> tuple[list[Text], Tensor]:
        """R pairs of tokenised texts, joined as the tokenizer joins two texts, without their prompts; and where in each
        pair the second text begins (R). A pair that is too long loses tokens of the longer text."""
        start, middle, end = self.specials
        pairs, begins = [], []
        for a, b in zip(map(self._body, first), map(self._body, second), strict=True):
            short = min(len(a), len(b), self.room // 2)
            cut_a, cut_b = (self.room - short, short) if len(a) > len(b) else (short, self.room - short)
            head = np.concatenate([start, a[:cut_a], middle])
            pairs.append(Text(np.concatenate([head, b[:cut_b], end])))
            begins.append(len(head))
        return pairs, torch.tensor(begins)

    def _body(self, text: Text) -> np.ndarray:
        return text.ids[max(self.before, text.prompt) : max(len(text.ids) - self.after, 0)]

    def forward(self, tokens: Tokens, begins: Tensor) -> Tensor:
        """Logits (R) of padded pairs (R, T) whose second texts begin at `begins` (R)."""
        types = {}
        if self.has_types:
            positions = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
            types["token_type_ids"] = (positions >= begins[:, None]).long()  # (T) >= (R, 1)
        return self.model(input_ids=tokens.ids, attention_mask=tokens.mask, **types).logits[:, 0]


def _classifier(encoder: TransformerEncoder) -> Any:
    config = copy.deepcopy(encoder.model.config)
    config.num_labels = 1
    config.pad_token_id = encoder.pad_id  # by which a decoder's classifier finds the last token
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}  # its score is the logit too
    kind = AutoModelForSequenceClassification
    try:
        if encoder.source is None:
            model = kind.from_config(config)
        else:
            model = kind.from_pretrained(
                encoder.source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
            )
    except ValueError as error:
        raise UsageError(f"{type(encoder.model).__name__} has no sequence classifier in transformers.") from error
    base = encoder.model
    for name, child in model.base_model.named_children():  # a pooler, which embedding has no use for
        if getattr(base, name, None) is None:
            setattr(base, name, child)
    setattr(model, model.base_model_prefix, base)
    return model
