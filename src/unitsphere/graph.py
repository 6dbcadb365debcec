"""A model as an ONNX graph that ONNX Runtime executes: tokens in, finished vectors out.

    onnx/model.onnx            encoder, pooling, projection and normalisation
    tokenizer…, config.json    as transformers saves them
    unitsphere.yaml            prompts, longest input, width

Code: https://github.com/microsoft/onnxruntime
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoTokenizer

from unitsphere.digest import tokenizer_identity
from unitsphere.encoders.reader import Reader
from unitsphere.model import Model
from unitsphere.types import Passes, Text, Tokens

INPUTS = ("input_ids", "attention_mask", "prompt")  # the last only where the pooling leaves prompts out
OUTPUT = "sentence_embedding"
FILE = "model.onnx"  # wherever a graph lies: it names the file of its weights, so it cannot be renamed
GRAPH = f"onnx/{FILE}"
# Slower on a CPU than the addition and the LayerNormalization that it puts together (experiments/compression).
NOT_FUSED = ["SkipLayerNormFusion"]
# x86 without VNNI adds u8 x s8 in 16 bits, which overflow. This takes u8 x u8, and with VNNI only half of the speed.
EXACT_INT8 = ("session.x64quantprecision", "1")


@dataclass(frozen=True)
class Card:
    """What a graph does not say of itself. `protocol` is that of the embedder it was made from, with its precision."""

    dim: int
    normalize: bool
    prompts: Mapping[str, str]
    max_length: int
    protocol: Mapping[str, Any] = field(default_factory=dict)
    default_prompt: str | None = field(default=None, repr=False)  # not in `identity` twice: the protocol has it


class GraphModel(Model):
    """Texts to vectors through an ONNX graph.

    Args:
        file: The graph, a model.onnx; files beside it that begin with its name are its weights.
        tokenizer: A transformers tokenizer.
        card: What the graph does not say.
        config: A folder with the transformers config.json that goes with the tokenizer, or None.
    """

    def __init__(self, file: Path, tokenizer: Any, card: Card, config: Path | None = None):
        self.file, self.card, self.config = file, card, config
        self.encoder = Reader(tokenizer, card.max_length)
        self.dim, self.normalize, self.prompts = card.dim, card.normalize, dict(card.prompts)
        self.default_prompt = card.default_prompt
        self.read = {}
        self.providers: Sequence[Any] = onnxruntime.get_available_providers()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @cached_property
    def session(self) -> Any:
        """Made when it is first needed, with as many threads as torch has."""
        return session(str(self.file), self.providers)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Padded tokens (B, T) to vectors (B, dim)."""
        given = dict(zip(INPUTS, (tokens.ids, tokens.mask, tokens.prompt), strict=True))
        (vectors,) = self.session.run([OUTPUT], {i.name: given[i.name].numpy() for i in self.session.get_inputs()})
        return torch.from_numpy(vectors)

    def through(self, passes: Passes, texts: Sequence[Text]) -> Tensor:
        return passes(texts, self)

    def protocol(self) -> dict[str, Any]:
        return dict(self.card.protocol)

    def identity(self) -> str:
        parts = hashlib.sha256(repr((self.card, tokenizer_identity(self.encoder.tokenizer))).encode())
        for file in weights(self.file):
            parts.update(file.read_bytes())
        return parts.hexdigest()

    def write(self, folder: Path) -> None:
        """Put the files of the model into a folder that is there."""
        place = (folder / GRAPH).parent
        place.mkdir(parents=True, exist_ok=True)
        for file in weights(self.file):
            shutil.copyfile(file, place / file.name)
        self.encoder.tokenizer.save_pretrained(folder)
        if self.config is not None:
            shutil.copyfile(self.config / "config.json", folder / "config.json")
        plain = {**vars(self.card), "prompts": dict(self.card.prompts), "protocol": dict(self.card.protocol)}
        OmegaConf.save(OmegaConf.create({"load": "unitsphere.graph.load", **plain}), folder / "unitsphere.yaml")

    def with_graph(self, file: Path, precision: str) -> "GraphModel":
        """The same model with another graph, that computes in other numbers."""
        card = replace(self.card, protocol={**self.card.protocol, "precision": precision})
        return GraphModel(file, self.encoder.tokenizer, card, self.config)


def session(graph: str | bytes, providers: Sequence[Any]) -> Any:
    """ONNX Runtime's executor of a graph, its file or its bytes. Sums of int8 products are exact on every processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    if int8_overflows(getattr(torch.cpu, "get_capabilities", dict)()):  # which older ones have not
        options.add_session_config_entry(*EXACT_INT8)
    return onnxruntime.InferenceSession(graph, options, providers=providers, disabled_optimizers=NOT_FUSED)


def int8_overflows(processor: Mapping[str, Any]) -> bool:
    """Whether ONNX Runtime's sums of int8 products do, unless it is told otherwise.

    Args:
        processor: What torch.cpu.get_capabilities says of it; of one that is not known, True.
    """
    x86 = processor.get("architecture", "x86") in ("x86", "x86_64")
    return x86 and not bool(processor.get("avx512_vnni") or processor.get("avx_vnni"))


def weights(file: Path) -> list[Path]:
    """The files of a graph: itself and, where it is larger than 2 GB, its weights."""
    return [file, *sorted(f for f in file.parent.glob(f"{file.name}.*"))]


def load(folder: Path) -> GraphModel:
    """What `GraphModel.write` wrote."""
    saved: Any = OmegaConf.to_container(OmegaConf.load(folder / "unitsphere.yaml"))
    card = Card(**{key: value for key, value in saved.items() if key != "load"})
    config = folder if (folder / "config.json").exists() else None
    return GraphModel(folder / GRAPH, AutoTokenizer.from_pretrained(folder), card, config)
