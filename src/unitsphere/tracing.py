"""An embedder as one ONNX graph: encoder, pooling, projection and normalisation, of any batch and length.

Code: torch.onnx.export, https://docs.pytorch.org/docs/stable/onnx.html. Attention is one operator from opset 23 on.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from unitsphere.embedder import Embedder
from unitsphere.errors import UsageError
from unitsphere.graph import FILE, INPUTS, OUTPUT, Card, GraphModel
from unitsphere.model import Model
from unitsphere.types import Text, Tokens

OPSET = 23
LARGEST = 2**31 - 2**20  # bytes of a graph in one file: protobuf allows 2 GB


class Finished(nn.Module):
    """Tokens to vectors, with the inputs of a graph."""

    def __init__(self, embedder: Embedder):
        super().__init__()
        self.embedder = embedder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt: Tensor | None = None) -> Tensor:
        if prompt is None:
            prompt = attention_mask.new_zeros(input_ids.shape[0])
        return self.embedder(Tokens(input_ids, attention_mask, prompt))


def example(embedder: Embedder) -> Tokens:
    """Tokens of two texts of unequal length."""
    texts = ["two texts", "of which one is longer than the other"]
    return embedder.encoder.pad([Text(ids) for ids in embedder.encoder.tokenize(texts)])


def inputs(embedder: Embedder) -> tuple[str, ...]:
    """What a graph of finished vectors reads."""
    return INPUTS[:2] if embedder.pool_prompt else INPUTS


def traced(
    embedder: Embedder, export: Callable[..., Any], module: type[nn.Module], names: Sequence[str], **options: Any
) -> Any:
    """What one of torch's exporters makes of a module that is built with the embedder.

    Args:
        embedder: On the CPU, in float32.
        export: torch.export.export or torch.onnx.export.
        module: Takes the graph's inputs.
        names: These inputs, the first two or three of `INPUTS`.
        options: For the exporter.

    Raises:
        UsageError: The model reads in windows, which one graph cannot put together; or torch cannot export it.
    """
    if embedder.windows is not None:
        raise UsageError("a model with windows reads a text in several passes, which is no single graph")
    tokens = example(embedder)
    given = [part for _, part in zip(names, (tokens.ids, tokens.mask, tokens.prompt), strict=False)]
    some = Dim.DYNAMIC  # which fails where torch would take the example's size for the only one
    shapes = {name: dict.fromkeys(range(x.dim()), some) for name, x in zip(names, given, strict=True)}
    try:
        with _silence():
            return export(module(embedder).eval(), tuple(given), dynamic_shapes=shapes, **options)
    except Exception as error:  # whatever torch's exporter raises
        kind = type(embedder.encoder.model).__name__
        raise UsageError(f"torch cannot export {kind}: {str(error).strip().splitlines()[0]}") from error


def to_onnx(embedder: Embedder, file: Path, module: type[nn.Module], names: Sequence[str], output: str) -> None:
    """Write the graph of a module with one output; `names` are its inputs.

    Raises:
        UsageError: See `traced`.
    """
    called = {"input_names": [*names], "output_names": [output]}
    options = {"dynamo": True, "opset_version": OPSET, "verbose": False, **called}
    save(traced(embedder, torch.onnx.export, module, names, **options).model_proto, file)


def save(graph: onnx.ModelProto, file: Path) -> None:
    """Write a graph; where one file cannot hold it, its weights in another, which the graph names: keep both names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = graph.graph
    for part in (graph, whole, *whole.node, *whole.input, *whole.output, *whole.value_info):
        part.ClearField("metadata_props")  # where in whose files torch has seen it: another graph for the same model
        part.ClearField("doc_string")
    large = sum(len(weight.raw_data) for weight in whole.initializer) > LARGEST  # a larger one has no ByteSize
    onnx.save(graph, str(file), save_as_external_data=large, location=f"{file.name}.data")


def as_graph(model: Model, folder: Path) -> GraphModel:
    """The model as a graph in `folder`, or itself where it is one.

    Raises:
        UsageError: See `to_onnx`; or it is neither.
    """
    if isinstance(model, GraphModel):
        return model
    if not isinstance(model, Embedder):
        raise UsageError(f"a {type(model).__name__} has no torch weights of which a graph could be made")
    model = model.cpu().float().eval()
    file = folder / "float" / FILE
    to_onnx(model, file, Finished, inputs(model), OUTPUT)
    model.encoder.model.config.save_pretrained(folder)
    limit = model.encoder.max_length
    protocol = {**model.protocol(), "precision": "float32 (onnx)"}
    card = Card(model.dim, model.normalize, model.prompts, limit, protocol, model.default_prompt)
    return GraphModel(file, model.encoder.tokenizer, card, folder)


@contextlib.contextmanager
def _silence() -> Any:
    """torch's exporter tells of every step."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
