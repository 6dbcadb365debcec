"""A BERT of a few thousand random weights, with a vocabulary made on the spot: for tests and for reading the code.

It reads characters (WordPiece over single letters), so every text has tokens and no file is needed.
"""

import string

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from unitsphere.encoders.transformer import TransformerEncoder


def tiny(
    dim: int = 32, depth: int = 2, dropout: float = 0.1, max_length: int = 128, seed: int = 0
) -> TransformerEncoder:
    """Make the encoder; equal arguments give equal weights.

    Args:
        dim: Width, a multiple of 4 (it has 4 attention heads).
        depth: Number of transformer layers.
        dropout: Probability of every dropout.
        max_length: In tokens, which are characters here.
        seed: Of the random weights.
    """
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*special.values(), *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=4 * dim,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **special)
    return TransformerEncoder(model, fast, max_length)
