"""An encoder inside its language-model head: for masked-language-model training, and as a generator of replaced tokens.

Paper: Devlin et al. 2019, BERT, https://arxiv.org/abs/1810.04805. Code: https://github.com/huggingface/transformers
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from unitsphere import paths
from unitsphere.encoders.pruned import from_pretrained
from unitsphere.encoders.transformer import TransformerEncoder
from unitsphere.errors import UsageError


def with_head(encoder: TransformerEncoder, causal: bool = False) -> Any:
    """transformers' model with a language-model head whose base *is* the encoder's model: the weights are shared, the
    output matrix is tied to the word embeddings, and saving the encoder saves the head.

    The head is the checkpoint's where it has one, else a new one.

    Args:
        encoder: Of any architecture that transformers has such a head for.
        causal: A decoder's head.

    Raises:
        UsageError: There is no such head.
    """
    kind: Any = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    config = encoder.model.config
    try:
        if encoder.source is None:
            model = kind.from_config(config)
        else:
            model = from_pretrained(kind, encoder.source, config, dtype=torch.float32)
    except ValueError as error:
        name = type(encoder.model).__name__
        raise UsageError(
            f"{name} has no {'causal' if causal else 'masked'} language-model head in transformers."
        ) from error
    setattr(model, model.base_model_prefix, encoder.model)
    model.tie_weights()
    encoder.headed = (model,)
    return model


def generator(path: str) -> tuple[Any, Any]:
    """A masked language model and its tokenizer.

    Args:
        path: A run or model folder, or a hub id.

    Raises:
        UsageError: Nothing loadable is there, or it has no language-model head.
    """
    folder = paths.model(path)
    source = str(folder or path)
    try:
        model, report = from_pretrained(AutoModelForMaskedLM, source, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"generator.path={path}: no masked language model is there ({str(error).splitlines()[0]})"
        ) from error
    if report["missing_keys"]:
        raise UsageError(
            f"generator.path={path}: this checkpoint has no language-model head (missing: "
            f"{sorted(report['missing_keys'])[0]}, …). Train one first: "
            f"python train.py loss=mlm select=last encoder=hub encoder.path={path}"
        )
    return model, tokenizer
