"""Write symbolic tensors into a graph: every subexpression once, and only what is used."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.gradient.expression import Call, Expr, operand_dtype, tensor
from qgraph.onnxfile.shapes import infer_shapes

PREFIX = "grad"
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})


class Emitter:
    """Turns expressions into nodes at the end of `graph`.

    A call equal to one already there (same operator, inputs and attributes) becomes that node, even one of the forward
    pass: missing outputs are added to it rather than computed again.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._nodes: dict[Hashable, ir.Node] = {}
        self._calls: dict[Call, ir.Node] = {}
        self._constants: dict[Hashable, ir.Value] = {}
        self._taken: set[str | None] = {v.name for node in graph for v in node.outputs}
        self._taken |= {v.name for v in graph.inputs}
        self._taken |= set(graph.initializers)
        self._node_names: set[str | None] = {node.name for node in graph}
        for node in graph:
            if node.domain == "":
                self._nodes.setdefault(_key(node.op_type, node.inputs, _attributes(node)), node)

    def emit(self, expr: Expr, scope: str) -> ir.Value:
        """The value of `expr`; new nodes are named after `scope`, the forward node that they differentiate."""
        if isinstance(expr.source, ir.Value):
            return expr.source
        if isinstance(expr.source, np.ndarray):
            return self._constant(expr.source)
        node = self._calls.get(expr.source)
        if node is None:
            node = self._calls[expr.source] = self._node(expr.source, scope)
        self._complete(node, expr.index)
        value = node.outputs[expr.index]
        if value.dtype is None:
            value.dtype = expr.dtype
        return value

    def _node(self, made: Call, scope: str) -> ir.Node:
        inputs = [None if e is None else self.emit(e, scope) for e in made.inputs]
        if made.op in _BROADCASTING:
            if (expansion := _postponable(inputs)) is not None:
                return self._postponed(made, inputs, expansion, scope)
            inputs = _unexpanded(inputs)
        key = _key(made.op, inputs, made.attributes)
        if key not in self._nodes:
            name = _unique(f"{PREFIX}/{scope}/{made.op}", self._node_names)
            node = ir.node(made.op, inputs, attributes=made.attributes, num_outputs=made.outputs, name=name)
            for i, value in enumerate(node.outputs):
                value.name = _unique(name if made.outputs == 1 else f"{name}.{i}", self._taken)
            self._graph.append(node)
            self._nodes[key] = node
        return self._nodes[key]

    def _postponed(self, made: Call, inputs: list[ir.Value | None], expansion: ir.Node, scope: str) -> ir.Node:
        """Compute with the small tensor first, and expand the result."""
        small = [expansion.inputs[0] if v is expansion.outputs[0] else v for v in inputs]
        operands = tuple(None if v is None else tensor(v) for v in small)
        inner = Expr(Call(made.op, operands, made.attributes, 1), operand_dtype(operands))
        shape = expansion.inputs[1]
        if shape is None:
            raise ValueError("Expand without a shape")
        outer = Call("Expand", (inner, tensor(shape)), {}, 1)
        node = self._node(outer, scope)
        if node.outputs[0].shape is None:
            node.outputs[0].shape = expansion.outputs[0].shape
        return node

    def _complete(self, node: ir.Node, index: int) -> None:
        missing = index + 1 - len(node.outputs)
        if missing > 0:
            node.resize_outputs(index + 1)
        if not node.outputs[index].name:
            node.outputs[index].name = _unique(f"{node.name or node.outputs[0].name}.{index}", self._taken)

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = _unique(f"{PREFIX}/constant", self._taken)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
            value.dtype = ir.DataType.from_numpy(array.dtype)
            self._graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]


def _expansion(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "Expand" and node.domain == "" else None


def _postponable(inputs: list[ir.Value | None]) -> ir.Node | None:
    """The Expand among the inputs, if all others are scalars."""
    expanded = [v for v in inputs if _expansion(v) is not None]
    rest = [v for v in inputs if v not in expanded]
    scalars = all(v is not None and v.shape is not None and len(v.shape) == 0 for v in rest)
    return _expansion(expanded[0]) if len(expanded) == 1 and scalars else None


def _unexpanded(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    """Inputs before their expansion, if another input has the expanded shape and broadcasting does the rest."""
    result = list(inputs)
    for i, value in enumerate(inputs):
        node = _expansion(value)
        others = [v for j, v in enumerate(result) if j != i and v is not None and _expansion(v) is None]
        if value is not None and node is not None and any(_same_shape(value, other) for other in others):
            result[i] = node.inputs[0]
    return result


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    pairs = [tuple(d if isinstance(d, int) else d.value for d in pair) for pair in zip(a.shape, b.shape, strict=True)]
    return all(m is not None and m == n for m, n in pairs)


def append(model: ir.Model, expr: Expr, *, name: str) -> None:
    """Write `expr` into the graph of `model` as an additional output called `name`.

    Example:
        >>> import onnx_ir
        >>> from qgraph.gradient import append, tensor
        >>> text = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        >>> model = onnx_ir.from_onnx_text(text)
        >>> append(model, tensor(model.graph.outputs[0]) * 2.0, name="twice")
        >>> [output.name for output in model.graph.outputs]
        ['y', 'twice']
    """
    append_all(model, {name: expr})


def append_all(model: ir.Model, expressions: Mapping[str, Expr]) -> None:
    """Write expressions into the graph of `model` as additional outputs of these names.

    Example:
        >>> import onnx_ir
        >>> from qgraph.gradient import append_all, tensor
        >>> text = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
        >>> model = onnx_ir.from_onnx_text(text)
        >>> y = tensor(model.graph.outputs[0])
        >>> append_all(model, {"twice": y * 2.0, "square": y * y})
        >>> [output.name for output in model.graph.outputs]
        ['y', 'twice', 'square']
    """
    emitter = Emitter(model.graph)
    for name, expr in expressions.items():
        node = ir.node("Identity", [emitter.emit(expr, name)], name=name)
        node.outputs[0].name, node.outputs[0].dtype = name, expr.dtype
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    infer_shapes(model)


def _unique(stem: str, taken: set[str | None]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _key(op: str, inputs: Any, attributes: dict[str, Any]) -> Hashable:
    described = tuple(sorted((k, _described(v)) for k, v in attributes.items()))
    return op, tuple(id(v) if v is not None else None for v in inputs), described


def _described(value: Any) -> str:
    if isinstance(value, ir.Tensor):
        return repr((value.dtype, value.numpy().tolist()))
    return repr(tuple(value)) if isinstance(value, list | tuple) else repr(value)
