"""Fewer tokens: of a multilingual encoder, whose embedding matrix is most of it, those of the languages in use.

Paper: Abdaoui et al. 2020, Load what you need: smaller versions of multilingual BERT, https://arxiv.org/abs/2010.05609
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import chain, islice
from operator import or_
from typing import Any

from torch import nn

from unitsphere.compression.step import Context, Step, trainable
from unitsphere.compression.tokens import trimmed
from unitsphere.encoders.transformer import TransformerEncoder
from unitsphere.errors import UsageError
from unitsphere.formats.records import BadRow, records
from unitsphere.model import Model


class TrimVocabulary(Step):
    """Keep the tokens that texts of yours are made of, and what it takes to spell others of the same characters.

    Texts of kept tokens have the vectors that they had; others are read in smaller pieces, and characters that stand in
    no kept token as unknown.

    Args:
        path: Files of texts: of .txt every line, of .jsonl, .csv, .tsv and .parquet every value that is a text.
        pairs: Whether the texts of the training pairs count.
        least: How often a token must occur to be kept; texts with rarer ones change.
    """

    stage = "before"

    def __init__(self, path: str | Sequence[str] | None = None, pairs: bool = True, least: int = 1):
        self.files = [path] if isinstance(path, str) else list(path or ())
        self.pairs, self.least = pairs, least

    def apply(self, model: Model, context: Context) -> Model:
        embedder = trainable(model, "vocabulary")
        encoder = embedder.encoder
        texts = chain(chain.from_iterable(context.pairs if self.pairs else ()), *map(_texts, self.files))
        counts = {prompt: Counter[int]() for prompt in ("", *embedder.prompts.values())}  # some tokens begin a text
        while some := list(islice(texts, 1024)):
            for prompt, count in counts.items():
                read = encoder.tokenizer([prompt + text for text in some], return_attention_mask=False, verbose=False)
                count.update(chain.from_iterable(read["input_ids"]))
        most = reduce(or_, counts.values())
        if not most:
            raise UsageError("vocabulary: no texts; vocabulary.path=texts.txt, or pairs=true and training data.")
        used = {index for index, times in most.items() if times >= self.least}
        encoder.tokenizer, old = trimmed(encoder.tokenizer, used | _fixed(encoder), context.folder)
        encoder.pad_id = encoder.tokenizer.pad_token_id or 0
        _renumber(encoder.model, old)
        return embedder


def _texts(path: str) -> Iterator[str]:
    for number, record in records(path):
        if isinstance(record, BadRow):
            raise UsageError(f"vocabulary.path: {path}, row {number}: {record}")
        yield from (value for value in record.values() if isinstance(value, str))


def _special(config: Any) -> dict[str, Any]:
    """The ids that a configuration names: `pad_token_id` and its like -> an id, or a list of them."""
    return {k: v for k, v in config.to_dict().items() if k.endswith("_token_id") and isinstance(v, int | list)}


def _fixed(encoder: TransformerEncoder) -> set[int]:
    """Tokens that the model needs where they are: RoBERTa and its kin count positions from the padding token's id."""
    special = _special(encoder.model.config).values()
    used = {index for value in special for index in (value if isinstance(value, list) else [value])}
    embeddings = [module for module in encoder.model.modules() if not isinstance(module, nn.Embedding)]
    counted = any(getattr(module, "padding_idx", None) is not None for module in embeddings)
    return used | set(range(encoder.pad_id if counted else 0))


def _renumber(model: Any, old: Sequence[int]) -> None:
    """Token i becomes what token old[i] was; in place."""
    new = {was: index for index, was in enumerate(old)}
    embedding, config = model.get_input_embeddings(), model.config
    rows = embedding.weight.detach()[list(old)]
    model.set_input_embeddings(
        nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=new.get(embedding.padding_idx))
    )
    for name, value in _special(config).items():
        setattr(config, name, [new[i] for i in value] if isinstance(value, list) else new.get(value))
    config.vocab_size = len(old)
