"""The model as an ONNX graph in float32: nothing is smaller, and ONNX Runtime executes it."""

from typing import ClassVar

from unitsphere.compression.step import Context, Stage, Step
from unitsphere.model import Model
from unitsphere.tracing import as_graph


class Onnx(Step):
    """Exports the model; see `tracing`."""

    stage: ClassVar[Stage] = "after"

    def apply(self, model: Model, context: Context) -> Model:
        return as_graph(model, context.folder)
