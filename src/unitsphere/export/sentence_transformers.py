"""A folder for sentence-transformers, with an ONNX graph of the encoder for its onnx backend.

Text Embeddings Inference reads the same files: config.json, tokenizer.json, model.safetensors or onnx/model.onnx,
modules.json, 1_Pooling/config.json and sentence_bert_config.json.

Code: https://github.com/huggingface/sentence-transformers, https://github.com/huggingface/text-embeddings-inference
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from unitsphere import artefact
from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.export.verify import same, texts
from unitsphere.graph import GRAPH
from unitsphere.model import Model
from unitsphere.tracing import to_onnx
from unitsphere.types import Tokens

HIDDEN = "last_hidden_state"  # what both read; they pool themselves


class States(nn.Module):
    """Tokens to the hidden states of all tokens."""

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.encoder = embedder.encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt: Tensor | None = None) -> Tensor:
        return self.encoder(Tokens(input_ids, attention_mask, attention_mask.new_zeros(input_ids.shape[0]))).hidden


class ToSentenceTransformers:
    """Writes the folder and, where sentence-transformers is installed, loads it there and compares.

    Args:
        tolerance: The largest difference of any number of a vector.
    """

    def __init__(self, tolerance: float = 1e-4):
        self.tolerance = tolerance

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
            kind = "windows" if model.windows is not None else type(model.pooling).__name__
            raise UsageError(f"to=sentence_transformers: it has nothing like {kind}; to=onnx goes with any pooling")
        worst = same(model, artefact.load(folder), self.tolerance, ("the model", "the folder"))
        to_onnx(model.cpu().float().eval(), folder / GRAPH, States, HIDDEN)
        if find_spec("sentence_transformers") is None:
            return f"largest difference {worst:.1e}; sentence-transformers is not installed, so it was not loaded there"
        return f"largest difference in sentence-transformers {self.there(model, folder):.1e}"

    def there(self, model: Model, folder: Path) -> float:
        """The largest difference from what sentence-transformers computes.

        Raises:
            UsageError: It is above the tolerance.
        """
        from sentence_transformers import SentenceTransformer

        loaded: Any = SentenceTransformer(str(folder), device="cpu")
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
