"""What int8 and int4 share: the weighted products of a graph, replaced one by one."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from unitsphere.compression.products import Product, Replacement, read, replace, shrink_tables
from unitsphere.compression.step import Context, Stage, Step
from unitsphere.graph import FILE, GraphModel
from unitsphere.model import Model
from unitsphere.tracing import as_graph, save


class Quantized(Step):
    """A model as a graph whose products compute in other numbers.

    Args:
        embeddings: Whether the tables of embeddings become int8, too: most of a small model's bytes.
    """

    stage: ClassVar[Stage] = "after"
    precision: str

    def __init__(self, embeddings: bool):
        self.embeddings = embeddings

    def apply(self, model: Model, context: Context) -> Model:
        graph = as_graph(model, context.folder)
        self.attach(graph, context)
        file = context.folder / "quantized" / FILE
        self.rewrite(graph.file, file)
        return graph.with_graph(file, self.precision)

    def rewrite(self, source: Path, file: Path) -> None:
        """The graph of one file, its products replaced, into another."""
        proto = read(source)
        replace(proto, self.product)
        if self.embeddings:
            shrink_tables(proto)
        save(proto, file)

    def attach(self, graph: GraphModel, context: Context) -> None:
        """Look at the model before its products are replaced."""

    @abstractmethod
    def product(self, p: Product) -> Replacement:
        """The nodes of one product."""
