"""Where the grids of a plan go in the graph; `simulate` and `export` only differ in the nodes they put there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qgraph.errors import PlanError
from qgraph.graph.layers import LAYER_OPS, TABLE_OP, Layer
from qgraph.graph.sites import GLUE_OPS, GraphView
from qgraph.graph.sums import output_sums
from qgraph.graph.tensors import is_transparent, nearest, node_before
from qgraph.graph.walk import sources, uses_here, walk
from qgraph.onnxfile.edit import add_initializer, append_node, constant, take_place, unique_name
from qgraph.onnxfile.model import Model
from qgraph.plan import codes as weights
from qgraph.plan.dynamic import why_not_dynamic
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan
from qgraph.plan.sums import bias_fits

_READ_INTEGERS = frozenset({*LAYER_OPS, *GLUE_OPS})


class Emitter(Protocol):
    """Makes the nodes for the grids of a plan."""

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        """The quantized weight; `operand` is the grid of the layer's other operand, if it has one."""

    def bias(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value | None:
        """The value that replaces the layer's bias; None to keep the bias."""

    def dynamic(self, layer: Layer, quant: LayerQuant) -> None:
        """Let the layer quantize its operand by the values at hand, and multiply it with its weight from the codes."""

    def table(self, layer: Layer, quant: LayerQuant) -> None:
        """Let a layer that looks up rows of its weight look them up on the grid."""

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        """`value` rounded to the grid."""

    def fold_offset(self, layer: Layer, quant: LayerQuant) -> tuple[ir.Value, NDArray[np.float64]] | None:
        """The layer's operand without the offset of its grid, and the bias that makes up for it (LSQ+, Eq. 5).

        None where there is no offset, or where it cannot be folded.
        """

    def carry(self, node: ir.Node, quantized: ir.Value, quant: ActivationQuant) -> ir.Value | None:
        """Let a transparent node move `quantized` on its grid, and return the value to read instead of its output.

        None where the node may simply read `quantized`.
        """


def put_in_place(model: Model, plan: QuantPlan, make_emitter: Callable[[ir.Graph], Emitter]) -> ir.Model:
    """A new onnx-ir model: `model` with every grid of `plan` in place.

    Raises `PlanError` if the plan is for another model or names something that the model does not have.
    """
    plan.check_model(model.digest, model.source)
    net = model.ir_model.clone()
    view = GraphView(dataclasses.replace(model, ir_model=net))
    emitter = make_emitter(net.graph)
    layers = [_find(view, quant) for quant in plan.layers]
    operands = _operands(plan, layers)
    _place_activations(view, plan, dict(zip(layers, operands, strict=True)), emitter)
    for layer, quant, operand in zip(layers, plan.layers, operands, strict=True):
        if layer.op == TABLE_OP:
            emitter.table(layer, quant)
        elif quant.runs == "dynamic":
            _place_dynamic(net.graph, layer, quant, emitter)
        else:
            _place_layer(net.graph, layer, quant, operand, emitter)
    RemoveUnusedNodesPass()(net)
    net.graph.sort()
    return net


def _place_layer(
    graph: ir.Graph, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None, emitter: Emitter
) -> None:
    """Put the weight and the bias of a layer in place; `operand` is the grid that it reads on integers."""
    weight = emitter.weight(layer, quant, operand)
    shift = np.asarray(quant.bias_shift, np.float64)
    folded = emitter.fold_offset(layer, quant)
    if folded is not None:
        layer.node.replace_input_with(1 - layer.weight_index, folded[0])
        shift = folded[1] + (shift if shift.size else 0.0)
    if shift.size:
        shift_bias(graph, layer, shift)
    bias = emitter.bias(layer, quant, operand)
    if bias is not None:
        layer.node.replace_input_with(2, bias)
    layer.node.replace_input_with(layer.weight_index, weight)


def _place_dynamic(graph: ir.Graph, layer: Layer, quant: LayerQuant, emitter: Emitter) -> None:
    """Put a layer in place that finds the grid of its operand in every run."""
    if why := why_not_dynamic(layer):
        raise PlanError(f"layer '{layer.name}' cannot be dynamic: {why}; let it run in floats")
    if quant.bias_shift:
        shift_bias(graph, layer, np.asarray(quant.bias_shift, np.float64))
    emitter.dynamic(layer, quant)


def _find(view: GraphView, quant: LayerQuant) -> Layer:
    layer = view.by_name.get(quant.name)
    if layer is None:
        raise PlanError(f"the plan quantizes '{quant.name}', which is no quantizable layer of {view.model.source}")
    return layer


def _operands(plan: QuantPlan, layers: list[Layer]) -> list[ActivationQuant | None]:
    """The grid that the integer kernel of every layer reads; None where the layer runs in floats.

    A layer runs in floats if the plan says so, or if its bias would overflow the 32-bit accumulator.
    """
    grids = plan.operand_grids
    found = [nearest(layer.input, grids) for layer in layers]
    fits = [
        grid is not None and quant.runs == "integers" and bias_fits(layer, quant, grid)
        for layer, quant, grid in zip(layers, plan.layers, found, strict=True)
    ]
    return [grid if fit else None for grid, fit in zip(found, fits, strict=True)]


def _place_activations(
    view: GraphView, plan: QuantPlan, operands: Mapping[Layer, ActivationQuant | None], emitter: Emitter
) -> None:
    """Put every activation grid in place; `operands` are the grids that integer kernels read."""
    values = dict(view.values)  # by name, before outputs are renamed
    own = {values[a.tensor] for a in plan.activations if a.tensor in values}
    readers: dict[ActivationQuant, list[Layer]] = {}
    for layer, grid in operands.items():
        if grid is not None:
            readers.setdefault(grid, []).append(layer)
    for quant in plan.by_reach:
        value = values.get(quant.tensor)
        if value is None:
            raise PlanError(f"the plan quantizes the tensor '{quant.tensor}', which the model does not have")
        if quant.role == "tensor":
            _quantize_everywhere(view, value, quant, emitter, own)
        else:
            _quantize_operands(readers.get(quant, []), quant, emitter)


def _quantize_everywhere(
    view: GraphView, value: ir.Value, quant: ActivationQuant, emitter: Emitter, own: set[ir.Value]
) -> None:
    apart = {use.node for use in value.uses() if use.idx == 0 and _moves_only_to(use.node, own)}
    quantized = emitter.activation(value, quant)
    _replace_uses(view, value, quantized, but=apart)
    _carry_along(view, quantized, quant, emitter, own)


def _moves_only_to(node: ir.Node, own: set[ir.Value]) -> bool:
    """Whether a node only moves values to tensors with a grid of their own, which must not be rounded twice."""
    pending = [node]
    while pending:
        mover = pending.pop()
        moved = mover.outputs[0]
        if not is_transparent(mover):
            return False
        if moved in own:
            continue
        uses = moved.uses()
        if moved.is_graph_output() or not uses or any(use.idx for use in uses):
            return False
        pending += [use.node for use in uses]
    return True


def _carry_along(
    view: GraphView, quantized: ir.Value, quant: ActivationQuant, emitter: Emitter, own: set[ir.Value]
) -> None:
    """Keep a tensor on its grid through the transparent operators that lead to integer kernels."""
    leading = _leading_to_grids(quantized)
    pending = [(quantized, use) for use in reversed(uses_here(quantized))]
    while pending:
        source, use = pending.pop()
        if use.idx == 0 and use.node in leading and use.node.outputs[0] not in own:
            moved = use.node.outputs[0]
            carried = emitter.carry(use.node, source, quant)
            if carried is not None:
                _replace_uses(view, moved, carried)
            target = carried or moved
            pending += [(target, later) for later in reversed(uses_here(target))]


def _leading_to_grids(value: ir.Value) -> set[ir.Node]:
    """The transparent operators that move `value` to a layer or another operator that has an integer kernel."""

    def moving(value: ir.Value) -> Iterator[ir.Node]:
        return (use.node for use in uses_here(value) if is_transparent(use.node))

    moves = walk(moving(value), lambda node: moving(node.outputs[0]))
    results = {node.outputs[0]: node for node in moves}
    read = (v for v in results if any(use.node.op_type in _READ_INTEGERS for use in uses_here(v)))
    return {results[v] for v in sources(read, moves.__contains__) if v in results}


def _quantize_operands(layers: list[Layer], quant: ActivationQuant, emitter: Emitter) -> None:
    on_grid: dict[ir.Value, ir.Value] = {}
    for layer in layers:
        value = layer.input
        if value not in on_grid:
            on_grid[value] = emitter.activation(value, quant)
        layer.node.replace_input_with(1 - layer.weight_index, on_grid[value])


def _replace_uses(
    view: GraphView, value: ir.Value, quantized: ir.Value, *, but: AbstractSet[ir.Node] = frozenset()
) -> None:
    """Let every consumer of `value` read `quantized`, except those in `but` and the grid's own nodes.

    A graph output keeps its name. A graph input that is also an output stays both, as nothing computes it.
    """
    own = _nodes_between(value, quantized) | but
    for use in list(value.uses()):
        if use.node not in own:
            use.node.replace_input_with(use.idx, quantized)
    if value.is_graph_output() and not value.is_graph_input():
        outputs = value.graph.outputs  # type: ignore[union-attr]
        name = value.name
        value.name = unique_name(view.model.graph, f"{name}/float")
        quantized.name = name
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = quantized


def _nodes_between(source: ir.Value, result: ir.Value) -> set[ir.Node]:
    """The nodes that an emitter made to compute `result` from `source`."""
    found: set[ir.Node] = set()
    pending = [result]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(v for v in node.inputs if v is not None and v is not source)
    if not any(source in node.inputs for node in found):
        raise ValueError("an emitter must compute its result from the value it was given")
    return found


def shift_bias(graph: ir.Graph, layer: Layer, shift: NDArray[np.float64]) -> ir.Value:
    """Add `shift` (one value per output channel) to the layer's result, in its bias if that is constant.

    Returns the tensor that holds the shifted result.
    """
    old = constant(layer.bias)
    beta = layer.bias_factor
    if layer.op == "MatMul" or (layer.bias is not None and old is None) or beta == 0:
        return _add_after(graph, layer, shift)
    total = ((0.0 if old is None else old.astype(np.float64)) + shift / beta).astype(np.float32)
    name = f"{layer.name}/bias" if layer.bias is None else str(layer.bias.name)
    if len(layer.node.inputs) < 3:
        layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, add_initializer(graph, name, total))
    return layer.output


def _add_after(graph: ir.Graph, layer: Layer, shift: NDArray[np.float64]) -> ir.Value:
    """Append Add(result, shift) and let it take over the result's name and consumers."""
    trailing = {"Conv": len(layer.weight.shape or ()) - 2, "ConvTranspose": len(layer.weight.shape or ()) - 2}
    axes_after = 1 if layer.op == "MatMul" and layer.weight_index == 0 else trailing.get(layer.op, 0)
    amount = add_initializer(graph, f"{layer.name}/shift", shift.astype(np.float32).reshape(-1, *[1] * axes_after))
    output = layer.output
    add = append_node(graph, "Add", [output, amount], {})
    take_place(graph, output, add.outputs[0], left="unshifted")
    add.replace_input_with(0, output)
    return add.outputs[0]


def producers(plan: QuantPlan, view: GraphView) -> Mapping[str, ActivationQuant]:
    """The layers whose results have steps per channel, by name, with the grids of these results."""
    layers = {layer.node: layer for layer in view.layers}
    found = {}
    for grid in plan.activations:
        node = node_before(view.values[grid.tensor]) if grid.channel_scale else None
        if node in layers:
            found[layers[node].name] = grid
    return found


def offset_sums(layer: Layer, quant: LayerQuant, offset: float) -> NDArray[np.float64]:
    """The sum that the offset of a layer's operand adds to each output channel: offset sum(W^q) (LSQ+, Eq. 5)."""
    weight = weights.quantized(layer.weight_array(), quant.weight).astype(np.float64)
    return output_sums(layer, weight, np.full(layer.input_channels, offset))
