"""The training graph in the blocked layout of onnxruntime's fastest convolutions, with weights that can change.

onnxruntime runs a convolution about twice as fast if its weight is constant: it rearranges the weight when it loads the
model, and keeps activations in blocks of channels. But training steps change weights. So onnxruntime is first given
constants whose values count upwards. Where these values end up in its optimized graph is where the weights belong, and
that is where they are fed (`Blocked.feeds`).

onnxruntime also leaves the blocked layout at every operator that has no blocked kernel, such as a quantizer, and
returns to it afterwards. Element-wise operators compute the same in any layout, so they are moved into the blocked one
(`_stay_blocked`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qgraph.running.sessions import Session, optimised

DOMAIN = "com.microsoft.nchwc"
_FIRST = 2**22  # the numbers start here, above any constant of a network; float32 holds as many again exactly
_ELEMENTWISE = frozenset(
    {
        "Add",
        "And",
        "Cast",
        "Clip",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "HardSigmoid",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Not",
    }
    | {"QuantizeLinear", "Relu", "Sigmoid", "Sub", "Tanh", "Where"}
)
_NOT_FLOAT = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "QuantizeLinear"})


@dataclass(frozen=True, eq=False)
class Blocked:
    """A model for this machine only, and where in its rearranged inputs each value of `names` goes."""

    model: ir.Model
    names: tuple[str, ...]
    arranged: Mapping[str, NDArray[np.int64]]

    def feeds(self, parameters: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
        """The rearranged inputs for these values of `names`."""
        flat = np.concatenate([[np.float32(0)], *(parameters[name].reshape(-1) for name in self.names)])
        return {name: flat[index] for name, index in self.arranged.items()}


def blocked(model: ir.Model, names: Sequence[str]) -> Blocked | None:
    """The optimized model, with rearranged inputs in place of the float inputs `names`; None if that is impossible.

    It is impossible for more than four million values, and for graphs in which onnxruntime computes with the constants.
    """
    inputs = {str(v.name): v for v in model.graph.inputs if v.name in names}
    sizes = {name: int(np.prod(v.shape.numpy())) for name, v in inputs.items() if v.shape is not None}
    if len(sizes) < len(names) or (total := sum(sizes.values())) >= _FIRST:
        return None
    made = optimised(_numbered(model, inputs, sizes))
    arranged = {}
    for value in list(made.graph.initializers.values()):
        index = _places(value)
        if index is None:
            continue
        if not _is_consistent(index, value, total):
            return None
        name = str(value.name)
        del made.graph.initializers[name]
        value.const_value = None
        made.graph.inputs.append(value)
        arranged[name] = index
    _stay_blocked(made)
    return Blocked(model=made, names=tuple(names), arranged=arranged)


def _numbered(model: ir.Model, inputs: Mapping[str, ir.Value], sizes: Mapping[str, int]) -> ir.Model:
    """The model with constants in place of some inputs, whose values count upwards from `_FIRST` + 1."""
    copy = model.clone()
    start = _FIRST + 1
    for value in list(copy.graph.inputs):
        name = str(value.name)
        if name in inputs:
            numbers = np.arange(start, start + sizes[name], dtype=np.float32)
            start += sizes[name]
            copy.graph.inputs.remove(value)
            value.const_value = ir.tensor(numbers.reshape(value.shape.numpy()), name=name)  # type: ignore[union-attr]
            copy.graph.register_initializer(value)
    return copy


def _places(value: ir.Value) -> NDArray[np.int64] | None:
    """The positions of the numbers in a constant that holds some, with 0 for the padding of a block."""
    if value.const_value is None or value.dtype != ir.DataType.FLOAT:
        return None
    array = value.const_value.numpy()
    if not array.size or not np.isfinite(array).all() or np.abs(array).max() <= _FIRST:
        return None
    return np.where(array == 0, 0, array.astype(np.float64) - _FIRST).astype(np.int64)


def _is_consistent(index: NDArray[np.int64], value: ir.Value, total: int) -> bool:
    """Whether onnxruntime only moved the numbers and did not compute with them."""
    array = np.asarray(value.const_value.numpy(), np.float64) if value.const_value is not None else np.empty(0)
    return bool(((index >= 0) & (index <= total)).all() and (np.where(index, index + _FIRST, 0) == array).all())


def _stay_blocked(model: ir.Model) -> None:
    """Let element-wise operators read and write blocks, so that only other operators need reordering."""
    graph = model.graph
    blocks = _Blocks()
    for node in list(graph):
        if node.domain == DOMAIN:
            blocks.pass_reorder(node)
        elif node.op_type in _ELEMENTWISE:
            blocks.bring_in(graph, node)
            if blocks.all_in(node.inputs):
                blocks.move(graph, node)
        elif node.op_type == "Gemm":
            blocks.move_dot(graph, node)
        elif node.op_type == "ReduceSum":
            blocks.move_sum(graph, node)
    RemoveUnusedNodesPass()(model)


@cache
def _block() -> int:
    """The number of channels in a block, which depends on the machine."""
    one = """<ir_version: 8, opset_import: ["": 17, "com.microsoft.nchwc": 1]> ask (float[1, 4, 1, 1] x) => (y)
    { y = com.microsoft.nchwc.ReorderInput(x) }"""
    made = Session(ir.from_onnx_text(one), threads=1).run({"x": np.zeros((1, 4, 1, 1), np.float32)})["y"]
    return int(made.shape[1])


class _Blocks:
    """The tensors that also exist in blocks: their blocked twins, and how many channels they have."""

    def __init__(self) -> None:
        self.twins: dict[ir.Value, ir.Value] = {}
        self.channels: dict[ir.Value, int] = {}

    def pass_reorder(self, node: ir.Node) -> None:
        """Record a tensor that is reordered out of blocks, and skip the reordering back into them."""
        source, result = node.inputs[0], node.outputs[0]
        if source is None:
            return
        if node.op_type == "ReorderOutput":
            self.twins[result], self.channels[result] = source, node.attributes["channels"].as_int()
        elif node.op_type == "ReorderInput" and source in self.twins:
            result.replace_all_uses_with(self.twins[source])

    def all_in(self, inputs: Sequence[ir.Value | None]) -> bool:
        """Whether every input exists in blocks of the same shape, or is a scalar.

        Padded blocks do not count: not every operator maps zeros to zeros.
        """
        tensors = [v for v in inputs if v is not None and not _is_scalar(v)]
        if not tensors or any(v not in self.twins for v in tensors):
            return False
        shapes = {_shape(v) for v in tensors}
        return len(shapes) == 1 and None not in shapes and self.channels[tensors[0]] % _block() == 0

    def bring_in(self, graph: ir.Graph, node: ir.Node) -> None:
        """Reorder the inputs of `node` into blocks if one is in them: the others would have to leave otherwise."""
        tensors = [v for v in node.inputs if v is not None and not _is_scalar(v)]
        within = [v for v in tensors if v in self.twins]
        if not within or len({_shape(v) for v in tensors}) > 1 or self.channels[within[0]] % _block():
            return
        for value in dict.fromkeys(tensors):
            if value not in self.twins and value.dtype == ir.DataType.FLOAT:
                made = ir.node("ReorderInput", [value], domain=DOMAIN)
                graph.insert_before(node, made)
                self.twins[value], self.channels[value] = made.outputs[0], self.channels[within[0]]

    def move(self, graph: ir.Graph, node: ir.Node) -> None:
        """Add a twin of `node` that computes in blocks; readers of the plain layout get its result reordered."""
        twin = ir.node(
            node.op_type,
            [None if v is None else self.twins.get(v, v) for v in node.inputs],
            attributes={name: a.value for name, a in node.attributes.items()},
        )
        old, new = node.outputs[0], twin.outputs[0]
        operand = next(v for v in node.inputs if v is not None and v in self.twins)
        channels = self.channels[operand]
        old.shape = operand.shape  # not every shape is known in the optimized graph
        new.name, new.type, new.shape = f"{old.name}/blocked", old.type, old.shape
        graph.insert_before(node, twin)
        if _is_float(node):
            back = ir.node("ReorderOutput", [new], attributes={"channels": channels, "channels_last": 0}, domain=DOMAIN)
            graph.insert_before(node, back)
            plain, name = back.outputs[0], old.name
            old.name, plain.name = f"{name}/unused", name
            plain.shape, plain.type = old.shape, old.type
            old.replace_all_uses_with(plain, replace_graph_outputs=True)
            old = plain
        self.twins[old], self.channels[old] = new, channels

    def move_dot(self, graph: ir.Graph, node: ir.Node) -> None:
        """Move a dot product of two flattened tensors, which does not depend on the order of their elements."""
        rows = [v.producer() if v is not None else None for v in node.inputs]
        if len(rows) != 2 or not all(_is_row(row) for row in rows) or not node.attributes["transB"].as_int():
            return
        if self.all_in([row.inputs[0] for row in rows if row is not None]):
            for index, row in enumerate(rows):
                if row is not None and row.inputs[0] is not None:
                    made = ir.node("Reshape", [self.twins[row.inputs[0]], row.inputs[1]])
                    graph.insert_before(node, made)
                    node.replace_input_with(index, made.outputs[0])

    def move_sum(self, graph: ir.Graph, node: ir.Node) -> None:
        """Move a sum over everything, or over all but channels, which begins with the mean of every image's channel."""
        x, axes = (*node.inputs, None)[:2]
        shape = None if x is None else _shape(x)
        if x is None or x not in self.twins or shape is None or not _drops_axes(node):
            return
        if axes is None and self.all_in([x]):
            node.replace_input_with(0, self.twins[x])
        elif axes is not None and axes.const_value is not None and axes.const_value.numpy().tolist() == [0, 2, 3]:
            attributes = {"channels": self.channels[x], "channels_last": 0}
            means = ir.node("GlobalAveragePool", [self.twins[x]], domain=DOMAIN)
            plain = ir.node("ReorderOutput", means.outputs, attributes=attributes, domain=DOMAIN)
            summed = ir.node("ReduceSum", [plain.outputs[0], axes], attributes={"keepdims": 0})
            positions = ir.node("Constant", [], attributes={"value_float": float(shape[2] * shape[3])})
            total = ir.node("Mul", [summed.outputs[0], positions.outputs[0]])
            old, new = node.outputs[0], total.outputs[0]
            new.name, new.type, new.shape = old.name, old.type, old.shape
            graph.insert_before(node, [means, plain, summed, positions, total])
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _drops_axes(node: ir.Node) -> bool:
    return "keepdims" in node.attributes and not node.attributes["keepdims"].as_int()


def _is_row(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is None:
        return False
    return node.inputs[1].const_value.numpy().tolist() == [1, -1]


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    return tuple(value.shape.numpy()) if value.shape is not None and value.shape.is_static() else None


def _is_scalar(value: ir.Value) -> bool:
    return _shape(value) in ((), (1,))


def _is_float(node: ir.Node) -> bool:
    while node.op_type == "Min" and node.inputs[0] is not None:
        producer = node.inputs[0].producer()
        if producer is None:
            return True
        node = producer
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == ir.DataType.FLOAT
    return node.op_type not in _NOT_FLOAT
