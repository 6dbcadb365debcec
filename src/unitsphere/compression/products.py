"""The matrix products of an ONNX graph with a weight on the right, and how others in fewer bits take their place.

Code: the operators are ONNX Runtime's, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from unitsphere.errors import UsageError

DOMAIN = "com.microsoft"
TABLE = 1024  # rows from which on a gathered weight counts as a table of embeddings


@dataclass(frozen=True)
class Product:
    """a (…, K) @ weight (K, N) [+ bias (N)] -> out."""

    a: str
    weight: np.ndarray
    bias: str  # "" where there is none
    out: str
    name: str  # of the weight


@dataclass(frozen=True)
class Replacement:
    """Nodes and the constants that they read."""

    nodes: list[NodeProto]
    constants: dict[str, np.ndarray]


def read(file: Path) -> onnx.ModelProto:
    """A graph with its weights."""
    return onnx.load(str(file))


def products(model: onnx.ModelProto) -> dict[int, tuple[Product, int | None]]:
    """Position of a MatMul among the nodes -> the product, and the position of the Add of its bias, if it has one."""
    graph = model.graph
    constants = {i.name: i for i in graph.initializer}
    readers: dict[str, list[int]] = defaultdict(list)
    for position, node in enumerate(graph.node):
        for name in node.input:
            readers[name].append(position)
    found = {}
    for position, node in enumerate(graph.node):
        if node.op_type != "MatMul" or node.input[1] not in constants or len(constants[node.input[1]].dims) != 2:
            continue
        out, bias, add = node.output[0], "", None
        if len(readers[out]) == 1 and graph.node[readers[out][0]].op_type == "Add":
            after = graph.node[readers[out][0]]
            other = next(name for name in after.input if name != out)
            if other in constants and len(constants[other].dims) == 1:
                out, bias, add = after.output[0], other, readers[out][0]
        weight = numpy_helper.to_array(constants[node.input[1]])
        found[position] = Product(node.input[0], weight, bias, out, node.input[1]), add
    if not found:
        raise UsageError("the graph has no matrix product with a weight, so there is nothing to quantise")
    return found


def replace(model: onnx.ModelProto, by: Callable[[Product], Replacement]) -> None:
    """Put other nodes in the place of every product and its bias; the weights that nothing reads any more go.

    A node whose outputs are there already is not put in twice: products of one activation share what is made of it.
    """
    graph, found = model.graph, products(model)
    gone = {add for _, add in found.values() if add is not None}
    nodes: list[NodeProto] = []
    there: set[str] = set()
    constants: dict[str, np.ndarray] = {}
    for position, node in enumerate(graph.node):
        if position in found:
            new = by(found[position][0])
            nodes += [node for node in new.nodes if node.output[0] not in there]
            there |= {node.output[0] for node in new.nodes}
            constants |= new.constants
        elif position not in gone:
            nodes.append(node)
    _rebuild(model, nodes, constants)


def shrink_tables(model: onnx.ModelProto) -> None:
    """Tables of embeddings in int8 with a scale a row: a lookup reads the row and its scale, and multiplies."""
    graph = model.graph
    tables = {
        i.name: numpy_helper.to_array(i)
        for i in graph.initializer
        if len(i.dims) == 2 and i.dims[0] >= TABLE and i.data_type == TensorProto.FLOAT
    }
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        table, rows, out = node.input[0], node.input[1], node.output[0]
        codes, scale = symmetric(tables[table].T, bits=8)
        constants |= {f"{table}_int8": codes.T.copy(), f"{table}_scale": scale[:, None]}
        nodes += [
            helper.make_node("Gather", [f"{table}_int8", rows], [f"{out}_int8"]),
            helper.make_node("Cast", [f"{out}_int8"], [f"{out}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}_scale", rows], [f"{out}_scale"]),
            helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out]),
        ]
    _rebuild(model, nodes, constants)


def symmetric(weight: np.ndarray, bits: int, per_channel: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Weight (K, N) -> q int8 (K, N), s float32 (N) or (): weight ~ q s, |q| <= 2^(bits - 1) - 1, and zero is zero."""
    top = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=0) if per_channel else np.abs(weight).max()
    scale = np.maximum(largest, 1e-12).astype(np.float32) / top
    return np.clip(np.round(weight / scale), -top, top).astype(np.int8), scale


def _rebuild(model: onnx.ModelProto, nodes: list[NodeProto], constants: dict[str, np.ndarray]) -> None:
    graph = model.graph
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    kept = [TensorProto.FromString(i.SerializeToString()) for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]
    if DOMAIN not in {o.domain for o in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
