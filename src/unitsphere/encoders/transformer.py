"""Any transformers `AutoModel`, from a local folder, a run of ours, or a hub.

Code: https://github.com/huggingface/transformers
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers, processors
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

from unitsphere import paths
from unitsphere.encoders.attention import attend_fast
from unitsphere.encoders.drop_head import add_drop_head
from unitsphere.encoders.dropout import draw_fast
from unitsphere.encoders.fake_quant import add_fake_quant
from unitsphere.encoders.layers import keep_layers
from unitsphere.encoders.linear import multiply_fast
from unitsphere.encoders.lora import add_lora, merged
from unitsphere.encoders.packed import can_be_packed, first_position, packed
from unitsphere.encoders.pruned import from_pretrained
from unitsphere.encoders.reader import Reader
from unitsphere.errors import UsageError
from unitsphere.heap import keep_freed
from unitsphere.types import Tokens, TokenStates

DROPOUTS = ("dropout", "dropout_prob", "dropout_rate", "pdrop")  # how names of dropout probabilities end


class TransformerEncoder(nn.Module, Reader):
    """A transformers model with its tokenizer.

    Args:
        model: Takes `input_ids` and `attention_mask`, returns `last_hidden_state`.
        tokenizer: A transformers tokenizer; where it has no padding token, its end-of-text token pads.
        max_length: The longest input in tokens; longer texts are cut.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int):
        nn.Module.__init__(self)
        Reader.__init__(self, tokenizer, max_length)
        draw_fast(model)
        attend_fast(model)
        multiply_fast(model)
        keep_freed()
        self.model: Any = model
        self.dim: int = model.config.hidden_size
        self.source: str | None = None  # what the weights were read from
        # The model inside a head (of a language model, of a cross-encoder), where a loss trains one; in a tuple, so
        # that it is no submodule.
        self.headed: tuple[Any, ...] = ()
        self.groups: int | None = None  # of like lengths, in which attention pads in training; None pads everything

    def pack(self, groups: int | None) -> None:
        """Train without padding from now on, where the model can (see packed.py); None is with padding.

        Args:
            groups: Of texts of like length, in which attention pads.
        """
        self.groups = groups if groups is not None and can_be_packed(self.model) else None

    def forward(self, tokens: Tokens, layers: bool = False) -> TokenStates:
        if self.training and self.groups is not None:
            return packed(self.model, tokens, self.groups, layers)
        out = self.model(input_ids=tokens.ids, attention_mask=tokens.mask, output_hidden_states=layers)
        return TokenStates(out.last_hidden_state, tokens.mask, out.hidden_states if layers else None)

    def exported(self) -> Any:
        """What is saved: with its head where one was trained, LoRA merged into the weights."""
        return merged(self.headed[0] if self.headed else self.model)


def transformer(
    path: str,
    dropout: float | None = None,
    max_length: int | None = None,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    layers: Sequence[int] | None = None,
    bidirectional: bool = False,
    append_eos: bool = False,
    lora: Mapping[str, Any] | None = None,
    drop_head: float | None = None,
    fake_quant: bool = False,
) -> TransformerEncoder:
    """Load an encoder.

    Args:
        path: A model folder, a run folder of ours (its `model/`), or a hub id.
        dropout: Sets every dropout probability of the model's configuration, in [0, 1); None keeps them.
        max_length: In tokens, never over the model's limit; None takes what sentence-transformers would, else that.
        attention: transformers' attention implementation (`sdpa`, `eager`); None chooses.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        trust_remote_code: Run code that comes with the model. Off, and best left off.
        revision: Branch, tag or commit on a hub.
        layers: Keep these transformer layers, counted from 0, in this order: a cut of the model, as a student.
        bidirectional: Let every token of a decoder see every other (BehnamGhader et al. 2024, LLM2Vec,
            https://arxiv.org/abs/2404.05961). Saved with the model.
        append_eos: End every text with the end-of-text token, which last-token pooling then reads. Saved with the
            tokenizer.
        lora: Freeze the model and train low-rank matrices instead (see `lora.add_lora`): `{r: 8, alpha: 16, …}`.
        drop_head: Probability with which an attention head is dropped in training (see `drop_head.DropHead`).
        fake_quant: Compute as int8 inference will (see `fake_quant.FakeQuantLinear`); what is saved is not rounded.

    Raises:
        UsageError: Nothing loadable is at `path`, it has no such layers, or `attention` cannot compute in float32.
    """
    if attention is not None and attention.startswith("flash"):
        raise UsageError(
            f"encoder.attention={attention}: it has no float32, in which models are scored; sdpa and eager would fit."
        )
    folder = paths.model(path)
    source = str(folder or path)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if dropout is not None:
            _set_dropout(config, dropout)
        if bidirectional:
            config.is_causal = False
        config.use_cache = False  # of keys and values, which an encoder has no use for
        extra: dict[str, Any] = {"attn_implementation": attention} if attention else {}
        kind: Any = MODEL_MAPPING.get(type(config), AutoModel)
        if "add_pooling_layer" in inspect.signature(kind).parameters:
            extra["add_pooling_layer"] = False
        model = from_pretrained(AutoModel, source, config, dtype=torch.float32, **options, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(_why(path, folder, error)) from error
    if layers is not None:
        keep_layers(model, layers)
    customary = _customary(source, revision)
    if customary.get("do_lower_case"):
        _lower_case(tokenizer)
    if append_eos:
        _append_eos(tokenizer)
    if lora is not None:
        unknown = lora.keys() - {"r", "alpha", "dropout", "modules"}
        if unknown:
            raise UsageError(f"encoder.lora: no setting {sorted(unknown)[0]!r}; r, alpha, dropout, modules fit.")
        add_lora(model, **lora)
    if drop_head is not None:
        add_drop_head(model, drop_head)
    if fake_quant:
        add_fake_quant(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    limit = longest_input(config, tokenizer)
    encoder = TransformerEncoder(model, tokenizer, min(max_length or customary.get("max_seq_length") or limit, limit))
    encoder.source = source
    return encoder


def _why(path: str, folder: Path | None, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if folder is not None:
        return f"{path}: the folder does not hold a model that transformers can load ({reason})"
    return (
        f"{path}: no such folder here, and no hub gave a model of that name. Where the hub cannot be reached, copy the "
        f"model's folder to this machine and give its path instead ({reason})"
    )


def _set_dropout(config: Any, p: float) -> None:
    if not 0 <= p < 1:
        raise UsageError(f"encoder.dropout={p}: a probability in [0, 1) would fit.")
    numbers = [name for name, value in config.to_dict().items() if isinstance(value, float | int)]
    names = [name for name in numbers if name.endswith(DROPOUTS) and "classifier" not in name]
    if p and not names:
        raise UsageError(f"encoder.dropout={p}: a {config.model_type} model has no dropout.")
    for name in names:
        setattr(config, name, p)


def _append_eos(tokenizer: Any) -> None:
    """Make the tokenizer itself end texts with its end-of-text token, so that whoever loads it does the same."""
    eos, backend = tokenizer.eos_token, tokenizer.backend_tokenizer
    if eos is None:
        raise UsageError("encoder.append_eos=true: this tokenizer has no end-of-text token.")
    if tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:
        return
    end = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    before = backend.post_processor
    backend.post_processor = processors.Sequence([before, end]) if before is not None else end


def longest_input(config: Any, tokenizer: Any) -> int:
    """In tokens, what positions and tokenizer allow, and 32,768 at most."""
    limits = [tokenizer.model_max_length, 32768]
    positions = getattr(config, "max_position_embeddings", None)
    if positions and positions > 0:
        limits.append(positions - first_position(config))
    return int(min(limits))


def _customary(source: str, revision: str | None) -> dict[str, Any]:
    """How sentence-transformers would read texts, where the folder, or the hub, says it."""
    errors = ("missing_entries", "connection_errors", "gated_repo")
    lenient: dict[str, Any] = {f"_raise_exceptions_for_{error}": False for error in errors}
    settings = cached_file(source, "sentence_bert_config.json", revision=revision, **lenient)
    return json.loads(Path(settings).read_text()) if settings else {}


def _lower_case(tokenizer: Any) -> None:
    """Let the tokenizer itself lower its texts' letters, as sentence-transformers does for `do_lower_case`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"do_lower_case=true, and a {type(tokenizer).__name__} cannot be told to lower letters.")
    if backend.normalizer is None or backend.normalizer.normalize_str("A") != "a":
        before = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
