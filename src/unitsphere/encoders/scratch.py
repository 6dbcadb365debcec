"""A BERT with random weights and another model's vocabulary: to pretrain an encoder yourself with loss=mlm.

Paper: Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805
"""

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from unitsphere import paths
from unitsphere.encoders import minilm
from unitsphere.encoders.transformer import TransformerEncoder, transformer


def scratch(
    path: str | None = None,
    tokenizer: str | None = None,
    dim: int = 256,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.1,
    max_length: int = 128,
    seed: int = 0,
) -> TransformerEncoder:
    """Make the encoder; equal arguments give equal weights.

    Args:
        path: None for random weights; a run or model folder to go on with, and then the rest is as it is there.
        tokenizer: A model's folder or hub id; None is the packaged MiniLM's, the vocabulary of BERT-base-uncased.
        dim: Width, a multiple of `heads`; the feed-forward layers are 4 times as wide.
        depth: Number of transformer layers.
        heads: Attention heads.
        dropout: Probability of every dropout.
        max_length: In tokens.
        seed: Of the random weights.
    """
    if path is not None:
        return transformer(path)
    source = str(minilm.folder() if tokenizer is None else paths.model(tokenizer) or tokenizer)
    vocabulary = AutoTokenizer.from_pretrained(source, model_max_length=max_length)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        max_position_embeddings=max_length,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=vocabulary.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    return TransformerEncoder(model, vocabulary, max_length)
