"""The ONNX graph of a model, with tokenizer and prompts: in float32, or in int8."""

from pathlib import Path
from tempfile import TemporaryDirectory

from unitsphere.compression.step import Context, Step
from unitsphere.export.verify import near, same
from unitsphere.graph import GraphModel
from unitsphere.model import Model
from unitsphere.tracing import as_graph


class ToOnnx:
    """A folder with the graph, the tokenizer and the prompts, which `artefact.load` loads.

    Args:
        tolerance: The largest difference of any number of a vector that is taken for rounding.
    """

    def __init__(self, tolerance: float = 1e-4):
        self.tolerance = tolerance

    def __call__(self, model: Model, folder: Path) -> str:
        """Write into an empty folder, and say how near it is.

        Raises:
            UsageError: It cannot be exported, or is not near enough.
        """
        with TemporaryDirectory() as work:
            graph = as_graph(model, Path(work))
            worst = same(model, graph, self.tolerance)
            graph.write(folder)
        return f"largest difference {worst:.1e}"


class ToQuantizedOnnx:
    """The same through a compression step that makes a graph.

    Args:
        step: E.g. int8.Int8Dynamic. It gets no texts, so it must not need any.
        cosine: The least mean cosine with the model's vectors.
    """

    def __init__(self, step: Step, cosine: float = 0.95):
        self.step, self.cosine = step, cosine

    def __call__(self, model: Model, folder: Path) -> str:
        """As `ToOnnx`."""
        with TemporaryDirectory() as work:
            graph = self.step.apply(model, Context([], None, Path(work)))
            cosine = near(model, graph, self.cosine)
            assert isinstance(graph, GraphModel)
            graph.write(folder)
        return f"mean cosine {cosine:.4f}"
