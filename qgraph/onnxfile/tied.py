"""Tables that an output projection reads too, as one constant.

    MatMul(x, W^T), with W read by a Gather  ->  Gemm(x as a matrix, W, transB = 1), with the outer axes of x again

Exporters write W^T as a Transpose, which is folded, or store it once more; both are found by their content. Constants
that equal a table become the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.onnxfile.edit import add_initializer, constant, unique_name

_LEAST = 1024  # values: sharing less saves less than it takes


def tie_tables(model: ir.Model) -> None:
    """Let nodes of the main graph that read a copy of a table, transposed or not, read the table."""
    graph = model.graph
    tables = dict.fromkeys(node.inputs[0] for node in graph if node.op_type == "Gather" and node.domain == "")
    held = {v: array for v in tables if v and (array := constant(v)) is not None and _may_be_tied(array)}
    kept: list[ir.Value] = []
    before = {value for value in graph.initializers.values() if value.uses()}
    for value, table in held.items():
        if not any(_replace(value, one, table, held[one]) for one in kept):
            kept.append(value)
    shapes = {shape for one in kept for shape in (held[one].shape, held[one].shape[::-1])}
    for other in list(graph.initializers.values()):  # read only where the shape fits: weights may be in a file
        held_as = other.const_value
        fits = other not in held and held_as is not None and tuple(held_as.shape.numpy()) in shapes
        if fits and (array := constant(other)) is not None and _may_be_tied(array):
            _ = any(_replace(other, one, array, held[one]) or _read(graph, other, one, array) for one in kept)
    for name, value in list(graph.initializers.items()):
        if value in before and not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _may_be_tied(array: NDArray[Any]) -> bool:
    return array.ndim == 2 and array.dtype == np.float32 and array.size >= _LEAST


def _replace(copy: ir.Value, table: ir.Value, array: NDArray[Any], held: NDArray[Any]) -> bool:
    """Read the table in place of an equal copy of it."""
    if array.shape != held.shape or copy.is_graph_output() or not np.array_equal(array, held):
        return False
    copy.replace_all_uses_with(table)
    return True


def _read(graph: ir.Graph, turned: ir.Value, table: ir.Value, array: NDArray[Any]) -> bool:
    """Multiply with the table where a MatMul reads its transpose."""
    held = constant(table)
    if held is None or array.shape != held.shape[::-1] or not np.array_equal(array, held.T):
        return False
    for use in list(turned.uses()):
        if use.node.op_type == "MatMul" and use.idx == 1 and use.node.graph is graph and not use.node.domain:
            _as_gemm(graph, use.node, table)
    return True


def _as_gemm(graph: ir.Graph, product: ir.Node, table: ir.Value) -> None:
    """MatMul(x, W^T) as Gemm(x, W, transB), between Reshapes unless x is a matrix."""
    x, old = product.inputs[0], product.outputs[0]
    rows, columns = table.shape.numpy()  # type: ignore[union-attr]
    name, product.name = str(product.name), unique_name(graph, f"{product.name}/product")
    flat = x if x is not None and x.shape is not None and len(x.shape) == 2 else None

    def put(op: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes)
        graph.insert_before(product, node)
        node.outputs[0].name = node.name = unique_name(graph, f"{name}/{op.lower()}")
        return node.outputs[0]

    def numbers(*values: int) -> ir.Value:
        return add_initializer(graph, f"{name}/sizes", np.array(values, np.int64))

    matrix = flat or put("Reshape", x, numbers(-1, columns))
    matrix.type, matrix.shape = old.type, matrix.shape or ir.Shape([None, columns])
    result = put("Gemm", matrix, table, transB=1)
    result.producer().name, result.type, result.shape = name, old.type, ir.Shape([matrix.shape[0], rows])  # type: ignore[union-attr]
    if flat is None:
        ahead = put("Slice", put("Shape", x), numbers(0), numbers(-1))
        result = put("Reshape", result, put("Concat", ahead, numbers(rows), axis=0))
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    result.shape, result.type = old.shape, old.type
    graph.remove(product, safe=True)
    result.name = old.name
