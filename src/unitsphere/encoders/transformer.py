"""Any transformers `AutoModel`, from a local folder, a run of ours, or a hub.

Code: https://github.com/huggingface/transformers
"""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer

from unitsphere import paths
from unitsphere.errors import UsageError
from unitsphere.types import Tokens, TokenStates


class TransformerEncoder(nn.Module):
    """A transformers model with its tokenizer.

    Args:
        model: Takes `input_ids` and `attention_mask`, returns `last_hidden_state`.
        tokenizer: A transformers tokenizer; where it has no padding token, its end-of-text token pads.
        max_length: The longest input in tokens; longer texts are cut.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int):
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.dim: int = model.config.hidden_size
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.pad_id: int = tokenizer.pad_token_id or 0

    def forward(self, tokens: Tokens, layers: bool = False) -> TokenStates:
        out = self.model(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=layers)
        return TokenStates(out.last_hidden_state, tokens.mask, out.hidden_states if layers else None)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[np.ndarray]:
        """One array of token ids a text, special tokens included, cut to `max_length` (default: the encoder's)."""
        limit = min(max_length or self.max_length, self.max_length)
        ids = self.tokenizer(list(texts), truncation=True, max_length=limit, return_attention_mask=False)["input_ids"]
        return [np.asarray(i or [self.pad_id], dtype=np.int32) for i in ids]

    def pad(self, sequences: Sequence[np.ndarray]) -> Tokens:
        """Right-pad to the longest of the sequences. Right, because a causal model then sees what it saw alone."""
        lengths = torch.tensor([len(s) for s in sequences])
        width = int(lengths.max())
        ids = np.full((len(sequences), width), self.pad_id, dtype=np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        mask = torch.arange(width) < lengths[:, None]  # (1, T) < (B, 1)
        return Tokens(torch.from_numpy(ids), mask.long())


def transformer(
    path: str,
    dropout: float | None = None,
    max_length: int | None = None,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> TransformerEncoder:
    """Load an encoder.

    Args:
        path: A model folder, a run folder of ours (its `model/`), or a hub id.
        dropout: Sets every dropout probability of the model's configuration, in [0, 1); None keeps them.
        max_length: In tokens, never over the model's limit; None takes what sentence-transformers would, else that.
        attention: transformers' attention implementation (`sdpa`, `eager`, `flash_attention_2`); None chooses.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        trust_remote_code: Run code that comes with the model. Off, and best left off.
        revision: Branch, tag or commit on a hub.

    Raises:
        UsageError: Nothing loadable is at `path`.
    """
    folder = paths.model(path)
    source = str(folder or path)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if dropout is not None:
            _set_dropout(config, dropout)
        extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
        kind: Any = MODEL_MAPPING.get(type(config), AutoModel)
        if "add_pooling_layer" in inspect.signature(kind).parameters:
            extra["add_pooling_layer"] = False
        model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32, **options, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(_why(path, folder, error)) from error
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    limit = _limit(config, tokenizer)
    return TransformerEncoder(model, tokenizer, min(max_length or _customary(folder) or limit, limit))


def _why(path: str, folder: Path | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if folder is not None:
        return f"encoder.path={path}: the folder does not hold a model that transformers can load ({reason})"
    return (
        f"encoder.path={path}: no such folder here, and no hub gave a model of that name. Where the hub cannot be "
        f"reached, copy the model's folder to this machine and name it: encoder.path=/path/to/the/folder ({reason})"
    )


def _set_dropout(config: Any, p: float) -> None:
    if not 0 <= p < 1:
        raise UsageError(f"encoder.dropout={p}: a probability in [0, 1) would fit.")
    for name, value in config.to_dict().items():
        if isinstance(value, float | int) and name.endswith(("dropout", "dropout_prob")) and "classifier" not in name:
            setattr(config, name, p)


def _limit(config: Any, tokenizer: Any) -> int:
    """The longest input that the model can read."""
    limits = [tokenizer.model_max_length, 32768]
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0:
        # RoBERTa and its kin count positions from the padding index + 1.
        offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
        limits.append(positions - offset)
    return int(min(limits))


def _customary(folder: Path | None) -> int | None:
    """The length to which sentence-transformers would cut, where the folder says one."""
    settings = folder / "sentence_bert_config.json" if folder else None
    return json.loads(settings.read_text()).get("max_seq_length") if settings and settings.exists() else None
