"""A folder for sentence-transformers, with ONNX graphs of the encoder for its onnx backend: in float32, and, where that
is near enough, in int8, which it loads with model_kwargs={"file_name": "onnx/model_int8.onnx"}.

Text Embeddings Inference reads the same files: config.json, tokenizer.json, model.safetensors or onnx/model.onnx,
modules.json, 1_Pooling/config.json and sentence_bert_config.json.

Code: https://github.com/huggingface/sentence-transformers, https://github.com/huggingface/text-embeddings-inference
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from unitsphere import artefact, modules_json
from unitsphere.compression.quantized import Quantized
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.export.verify import same, texts
from unitsphere.graph import GRAPH, INPUTS
from unitsphere.model import Model
from unitsphere.tracing import to_onnx
from unitsphere.types import Text, Tokens

HIDDEN = "last_hidden_state"  # what both read; they pool themselves
INT8 = "onnx/model_int8.onnx"


class States(nn.Module):
    """Tokens to the hidden states of all tokens."""

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.encoder = embedder.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(Tokens(input_ids, attention_mask, attention_mask.new_zeros(input_ids.shape[0]))).hidden


class ToSentenceTransformers:
    """Writes the folder and, where sentence-transformers is installed, loads it there and compares.

    Args:
        tolerance: The largest difference of any number of a vector.
        quantized: Makes the graph in int8; null leaves it out. It must not need texts.
        cosine: The least mean cosine of its hidden states to those of the other; with less it is left out, and that is
            said.
    """

    def __init__(self, tolerance: float = 1e-4, quantized: Quantized | None = None, cosine: float = 0.95):
        self.tolerance, self.quantized, self.cosine = tolerance, quantized, cosine

    def __call__(self, model: Model, folder: Path) -> str:
        """Write into an empty folder, and say how near it is.

        Raises:
            UsageError: The model is no torch model, or has a pooling or windows that sentence-transformers lacks; or it
                computes something else there.
        """
        if not isinstance(model, Embedder):
            raise UsageError(f"to=sentence_transformers: a {type(model).__name__} has no torch weights")
        artefact.save(model, folder)
        if not (folder / "modules.json").exists():
            found = modules_json.ours_alone(model)
            raise UsageError(f"to=sentence_transformers: it cannot load {found}; to=onnx goes with any pooling")
        worst = same(model, artefact.load(folder), self.tolerance, ("the model", "the folder"))
        to_onnx(model.cpu().float().eval(), folder / GRAPH, States, INPUTS[:2], HIDDEN)
        said = f"largest difference {worst:.1e}"
        if self.quantized is not None:
            self.quantized.rewrite(folder / GRAPH, folder / INT8)
            near = near_to(model, folder)
            said += f"; int8: mean cosine of hidden states {near:.4f}"
            if not near >= self.cosine:
                (folder / INT8).unlink()
                said += f", below to.cosine={self.cosine}: left out"
        if find_spec("sentence_transformers") is None:
            return f"{said}; sentence-transformers is not installed, so it was not loaded there"
        return f"{said}; in sentence-transformers, largest difference {self.there(model, folder):.1e}"

    def there(self, model: Model, folder: Path) -> float:
        """The largest difference from what sentence-transformers computes, both in float32.

        Raises:
            UsageError: It is above the tolerance.
        """
        from sentence_transformers import SentenceTransformer

        loaded: Any = SentenceTransformer(str(folder), device="cpu").float()
        some = texts(model.encoder)
        worst = 0.0
        for role in (None, *model.prompts):
            theirs = loaded.encode(some, prompt_name=role, batch_size=8, show_progress_bar=False)
            worst = max(worst, float(np.abs(theirs - model.encode(some, role=role)).max()))
        if not worst <= self.tolerance:
            raise UsageError(
                f"sentence-transformers computes vectors that differ by {worst:.2g}, more than {self.tolerance:g}: "
                "nothing is written"
            )
        return worst


def near_to(model: Embedder, folder: Path) -> float:
    """The mean cosine between the hidden states of the two graphs in a folder."""
    sessions = [InferenceSession(str(folder / graph)) for graph in (GRAPH, INT8)]
    found, some = [], sorted(texts(model.encoder), key=len)
    for start in range(0, len(some), 8):
        tokens = model.encoder.pad([Text(ids) for ids in model.encoder.tokenize(some[start : start + 8])])
        given = {"input_ids": tokens.ids.numpy(), "attention_mask": tokens.mask.numpy()}
        a, b = (torch.from_numpy(session.run([HIDDEN], given)[0]) for session in sessions)
        found.append(torch.cosine_similarity(a, b, dim=-1)[tokens.mask.bool()])
    return float(torch.cat(found).mean())
