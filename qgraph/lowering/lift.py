"""The inverse of lowering: the float network inside a quantized file, and the grids that the file puts on it.

`lift` reads files of any tool: QuantizeLinear and DequantizeLinear on activations and weights, fake quantization of
float weights, and operators on integers (see `integer_operators`). Weights become floats, exactly those that the file
multiplies; QuantizeLinear and DequantizeLinear on activations vanish, and their grids are kept by the tensor's name. A
grid whose zero is its lowest code also cuts off what is negative, which some tools use in place of a Relu: there a Relu
is put back.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from qgraph.errors import ModelError, QGraphError, first_line
from qgraph.graph.tensors import is_non_negative, is_transparent
from qgraph.graph.walk import descendants
from qgraph.lowering.file_grids import CODES, FileGrid, FileWeight, dequantized, grid_of, quantized
from qgraph.lowering.integer_operators import expand_integer_operators
from qgraph.onnxfile.edit import add_initializer, append_node, constant, name_everything, take_place
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import evaluate_constants


@dataclass(frozen=True, eq=False, kw_only=True)
class Lifted:
    """The float network, the grids of its activations by tensor, and its weights by node and place among the inputs.

    `dynamic` are the names of products whose operand is quantized in every run.
    """

    model: Model
    activations: Mapping[str, FileGrid]
    weights: Mapping[tuple[str, int], FileWeight]
    dynamic: frozenset[str]


def lift(model: Model) -> Lifted:
    """Take the grids out of a quantized model.

    Raises `ModelError` if it has none, or contradicts itself.
    """
    try:
        return _lifted(model)
    except QGraphError:
        raise
    except Exception as error:  # of any kind: shapes and types of grids are checked nowhere else
        raise ModelError(f"{model.source}: its grids contradict its operators: {first_line(error)}") from error


def _lifted(model: Model) -> Lifted:
    net = model.ir_model.clone()
    graph = net.graph
    if net.functions:
        passes.InlinePass()(net)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(net)
    passes.RemoveInitializersFromInputsPass()(net)
    name_everything(net)
    dynamic = {
        str(node.name) for node in graph if node.op_type in ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
    }
    replaced = expand_integer_operators(graph)
    _rename_quantizers(graph)
    varying = descendants(v for v in graph.inputs if v.const_value is None)
    weights = _lift_weights(net, varying)
    activations = _lift_activations(graph)
    if not (weights or activations or replaced):
        _refuse(graph, model.source)
    passes.RemoveUnusedNodesPass()(net)
    graph.sort()
    _forget_types(graph)
    return Lifted(
        model=replace(model, ir_model=net),
        activations={str(value.name): grid for value, grid in activations.items()},
        weights={
            (str(use.node.name), use.idx): FileWeight(values=value.const_value.numpy().astype(np.float32), grid=grid)  # type: ignore[union-attr]
            for value, grid in weights.items()
            for use in value.uses()
        },
        dynamic=frozenset(node.name for node in graph if node.name in dynamic),
    )


def _rename_quantizers(graph: ir.Graph) -> None:
    """Give ONNX's names to quantizers of other domains, such as AMD's ExtendedQuantizeLinear on integers."""
    for node in graph:
        name = node.op_type.removeprefix("Extended")
        if node.domain and name in ("QuantizeLinear", "DequantizeLinear"):
            zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if zero is None or zero.dtype.name in CODES:
                node.domain, node.op_type = "", name


def _refuse(graph: ir.Graph, source: str) -> NoReturn:
    """Raise `ModelError`: there is no quantizer, or one whose codes are not uniform, as floats of 8 bits are."""
    foreign = sorted({f"{n.domain or 'ai.onnx'}.{n.op_type}" for n in graph.all_nodes() if "Quantize" in n.op_type})
    if not foreign:
        raise ModelError(f"{source} is not quantized: it has no grid to adopt; use qgraph quantize")
    raise ModelError(
        f"{source} has no grid to adopt: {', '.join(foreign)} are not on uniform grids that are known; quantize the "
        f"float model"
    )


def _lift_weights(net: ir.Model, varying: Container[ir.Node]) -> dict[ir.Value, FileGrid]:
    """Compute what DequantizeLinear, or Cast and Mul, make of constant codes; int32 ones are biases."""
    fixed = [n for n in net.graph if n not in varying]
    products = [n for n in fixed if _scales_codes(n)]
    nodes = [*(n for n in fixed if n.op_type == "DequantizeLinear"), *products]
    known = _constants(net, [*(v for n in nodes for v in n.inputs), *(n.outputs[0] for n in products)])
    found = {}
    for node in nodes:
        arrays = [None if v is None else known[v] for v in node.inputs]
        scaled = node.op_type == "DequantizeLinear"
        real = dequantized(node, arrays) if scaled else known[node.outputs[0]]
        if scaled and real is None and all(array is not None for array in arrays):
            scales, shape = arrays[1].shape, arrays[0].shape  # type: ignore[union-attr]
            raise ModelError(f"scales of shape {list(scales)} of '{node.name}' fit no axis of its codes, {list(shape)}")
        if real is None or arrays[0] is None:
            continue
        grid = grid_of(node, arrays) if scaled else _grid_of_product(node, arrays)
        value = add_initializer(net.graph, f"{node.outputs[0].name}/real", real)
        node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
        if grid is not None and grid.high < 2**16:
            found[value] = grid
    return found


def _constants(net: ir.Model, values: Iterable[ir.Value | None]) -> dict[ir.Value, NDArray[Any] | None]:
    """Each of the values as an array: it is there, or quantized from what is there, or computed by onnxruntime."""
    found: dict[ir.Value, NDArray[Any] | None] = {}
    for value in dict.fromkeys(values):
        if value is None:
            continue
        node, array = value.producer(), constant(value)
        if array is None and node is not None and node.op_type == "QuantizeLinear":
            array = quantized(node, [constant(v) for v in node.inputs])
        found[value] = array
    rest = [value for value, array in found.items() if array is None]
    computed = evaluate_constants(net, rest) if rest else []
    if any(array is None for array in computed):  # one that onnxruntime does not compute: the others by themselves
        computed = [evaluate_constants(net, [value])[0] for value in rest]
    return found | dict(zip(rest, computed, strict=True))


def _scales_codes(node: ir.Node) -> bool:
    """Whether a Mul by a constant turns integers, cast to floats and moved by a zero point, into a weight."""
    computed = [v for v in node.inputs if v is not None and v.producer() is not None]
    if node.op_type != "Mul" or len(computed) != 1:
        return False
    source = computed[0].producer()
    while source is not None and source.op_type in ("Sub", "Reshape", "Transpose") and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    return source is not None and source.op_type == "Cast"


def _grid_of_product(node: ir.Node, arrays: list[NDArray[Any] | None]) -> FileGrid | None:
    """The grid of codes that are multiplied by one scale, or by one for each position along an axis."""
    scale = next((a for v, a in zip(node.inputs, arrays, strict=True) if v is not None and v.producer() is None), None)
    rank = max(a.ndim for a in arrays if a is not None)
    if scale is None or scale.size > max(scale.shape, default=1):
        return None
    shape = (1,) * (rank - scale.ndim) + scale.shape
    axis = None if scale.size == 1 else int(np.argmax(shape))
    return FileGrid(scale=scale.reshape(-1), zero_point=np.zeros(1, np.int64), low=-128, high=127, axis=axis)


def _lift_activations(graph: ir.Graph) -> dict[ir.Value, FileGrid]:
    """Remove Q and DQ from tensors that vary; what lies between them then moves floats."""
    found: dict[ir.Value, FileGrid] = {}
    for node in [n for n in graph if n.op_type == "QuantizeLinear"]:
        grid = grid_of(node, [None, *(constant(v) for v in node.inputs[1:])])
        if grid is None or grid.scale.size > 1 or not _comes_back(node):
            continue
        source = node.inputs[0]
        grid = _narrowed(graph, node, grid)
        found.setdefault(source, grid)  # type: ignore[arg-type]
        _bypass(graph, node, source)  # type: ignore[arg-type]
    for node in [n for n in graph if n.op_type == "DequantizeLinear"]:
        if not _holds_codes(node.inputs[0]):  # type: ignore[arg-type]
            _bypass(graph, node, node.inputs[0])  # type: ignore[arg-type]
    return {_cut_off(graph, value) if _cuts(value, grid) else value: grid for value, grid in found.items()}


def _cuts(value: ir.Value, grid: FileGrid) -> bool:
    """Whether a grid begins at zero although what a node computes may be negative."""
    begins = int(grid.zero_point.reshape(-1)[0]) == grid.low
    return begins and value.producer() is not None and not is_non_negative(value)


def _cut_off(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Put a Relu behind a tensor, and return its result; an output of the graph keeps its name."""
    relu = append_node(graph, "Relu", [value], {})
    result = relu.outputs[0]
    if value.is_graph_output():
        take_place(graph, value, result, left="negative")
    else:
        value.replace_all_uses_with(result)
    relu.replace_input_with(0, value)
    graph.sort()
    return result


def _narrowed(graph: ir.Graph, quantizer: ir.Node, grid: FileGrid) -> FileGrid:
    """The grid with the codes that a Min or Clip behind the quantizer passes; Pads get floats to fill with."""
    values, zero = [quantizer.outputs[0]], int(grid.zero_point.reshape(-1)[0])
    while values:
        for use in list(values.pop().uses()):
            node = use.node
            ends = _passed(node, use.idx)
            if ends is not None:
                low, high = max(grid.low, min(ends[0], zero)), min(grid.high, ends[1])
                grid = replace(grid, low=low, high=high)
                source: ir.Value = node.inputs[use.idx]  # type: ignore[assignment]
                _bypass(graph, node, source)
                graph.remove(node, safe=True)
                values += [source]
                break
            if node.op_type == "Pad" and len(node.inputs) > 2 and (fill := constant(node.inputs[2])) is not None:
                real = (fill.astype(np.float64) - zero) * float(grid.scale.max())
                node.replace_input_with(2, add_initializer(graph, f"{node.name}.fill", real.astype(np.float32)))
            if is_transparent(node):
                values += node.outputs
    return grid


def _passed(node: ir.Node, index: int) -> tuple[int, int] | None:
    """The codes that a Min with a constant, or a Clip, lets through; None for other nodes."""
    if node.op_type not in ("Min", "Clip") or (node.op_type == "Min" and len(node.inputs) != 2):
        return None
    bounds = (None, node.inputs[1 - index]) if node.op_type == "Min" else (*node.inputs[1:], None, None)[:2]
    known = [constant(v) for v in bounds]
    if any(v is not None and (a is None or a.size != 1) for v, a in zip(bounds, known, strict=True)):
        return None
    low, high = (end if a is None else int(a.item()) for a, end in zip(known, (-(2**31), 2**31 - 1), strict=True))
    return low, high


def _comes_back(quantizer: ir.Node) -> bool:
    """Whether the codes reach no output of the graph, so that nobody sees them."""
    values, seen = [quantizer.outputs[0]], set()
    while values:
        value = values.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_graph_output():
            return False
        values += [v for use in value.uses() if use.node.op_type != "DequantizeLinear" for v in use.node.outputs]
    return True


def _holds_codes(value: ir.Value) -> bool:
    """Whether a tensor still is one of integers: it comes from an input, or from a QuantizeLinear that was left."""
    while (node := value.producer()) is not None:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") or not node.inputs or node.inputs[0] is None:
            return node.op_type != "Relu"
        if not is_transparent(node) and node.op_type not in ("Concat", "Split", "Gather", "Where", "Min", "Max"):
            return False
        value = node.inputs[0]
    return value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


def _bypass(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Let what reads the node's result read `source`; an output of the graph keeps its name."""
    old = node.outputs[0]
    if not old.is_graph_output():
        old.replace_all_uses_with(source)
        return
    if source.is_graph_output() or source.producer() is None:
        source = append_node(graph, "Identity", [source], {}).outputs[0]
    take_place(graph, old, source, left="codes")


def _forget_types(graph: ir.Graph) -> None:
    """Types and shapes of inner tensors, some of which were codes; they are inferred again."""
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None
