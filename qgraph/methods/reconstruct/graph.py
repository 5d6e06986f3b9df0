"""The training graph of a block: what enters, parameters and the float network's results as inputs, loss and gradients.

The loss of a shard is the sum over its samples of the squared error of every tensor that leaves the block, relative to
the mean square of that tensor (of a whole sample). Grids of 8 bits are left out: their noise lies 24 dB lower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.gradient import Deferred, append, deferred_gradients, op, tensor
from qgraph.gradient.step import LOSS, OPSET
from qgraph.graph.blocks import Block
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import is_non_negative
from qgraph.graph.walk import ancestors
from qgraph.lowering.places import put_in_place
from qgraph.methods.reconstruct.quantizer import DOMAIN, INPUTS, drop_quantize, expand
from qgraph.observe.relay import part
from qgraph.onnxfile.edit import add_initializer, constant
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import raise_opset
from qgraph.onnxfile.shapes import infer_shapes
from qgraph.plan import codes as weights
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan

Sizes = Mapping[str, tuple[int, ...]]


def key(grid: ActivationQuant) -> str:
    """The name of a grid among the inputs of a training graph."""
    return f"{grid.tensor}:{grid.role}"


def trained_grids(plan: QuantPlan) -> tuple[ActivationQuant, ...]:
    """The grids of activations that are trained."""
    return tuple(a for a in plan.activations if a.bits < MAX_BITS and a.rounding is None and not a.offset)


def trainable(net: Model, plan: QuantPlan, layers: Collection[str]) -> ir.Model:
    """The quantized network with the weights and biases of `layers`, and the grids below 8 bits, as inputs."""
    raised = raise_opset(net, max(net.opset, OPSET))
    found = GraphView(net).by_name

    def with_shift(quant: LayerQuant) -> LayerQuant:  # so that every layer that can have a bias has one
        if quant.name not in layers or quant.bias_shift or not trains_bias(found[quant.name]):
            return quant
        return dataclasses.replace(quant, bias_shift=(0.0,) * found[quant.name].output_channels)

    wide = dataclasses.replace(plan.map_layers(with_shift), model=raised.digest, activations=trained_grids(plan))
    graph = put_in_place(raised, wide, lambda graph: _Emitter(graph, layers))
    graph.opset_imports[DOMAIN] = 1
    return graph


def trains_bias(layer: Layer) -> bool:
    """Whether the layer has, or can be given, a bias of one number for each output."""
    if layer.op == "MatMul" or not layer.bias_factor:
        return False
    bias = constant(layer.bias)
    if layer.bias is None or bias is None:
        return layer.bias is None
    return bias.size == 1 or bias.shape[-1] == bias.size == layer.output_channels


def block_part(model: ir.Model, reads: Sequence[str], writes: Sequence[str]) -> ir.Model:
    """The nodes of a graph between some tensors, as a model with these inputs and outputs."""
    values = ir.convenience.create_value_mapping(model.graph)
    entering = {values[name] for name in reads}
    leaving = [values[name] for name in writes]
    needed = ancestors(leaving, until=entering)
    return part(model, [node for node in model.graph if node in needed], leaving)[0]


def training_graph(
    model: ir.Model,
    float_model: ir.Model,
    block: Block,
    sizes: Sizes,
    power: Mapping[str, float],
    important: Sizes,
    known: Mapping[str, NDArray[np.generic]],
) -> Deferred:
    """Loss and gradients of a block whose tensors enter and leave in these sizes.

    `power` is the mean square of what leaves it; what enters and is `known` is a constant.

    Squared errors are multiplied by inputs `important:NAME`, with 1 along the axes that `important` gives a 1.

    Raises `GradientError` for an operator that cannot be differentiated.
    """
    shapes = _shapes(float_model, block, sizes, known)
    made = _with_known(block_part(model, block.reads, block.writes), known)
    parameters = {str(v.name): v.shape for v in model.graph.inputs}
    for value in made.graph.inputs:
        name = str(value.name)
        value.shape = ir.Shape(sizes[name]) if name in sizes else parameters[name]
    for node in made.graph:
        for value in node.outputs:
            value.shape = ir.Shape(shapes[str(value.name)]) if value.name in shapes else value.shape
        if node.domain == DOMAIN and node.inputs[0] is not None:
            node.outputs[0].shape = node.inputs[0].shape
    infer_shapes(made)
    values = ir.convenience.create_value_mapping(made.graph)
    terms = []
    for name in block.writes:
        target = ir.Value(name=f"float:{name}", shape=ir.Shape(shapes[name]), type=ir.TensorType(ir.DataType.FLOAT))
        made.graph.inputs.append(target)
        gap = tensor(values[name]) - tensor(target)
        squares = gap * gap
        if name in important:
            weights = ir.Value(
                name=f"important:{name}", shape=ir.Shape(important[name]), type=ir.TensorType(ir.DataType.FLOAT)
            )
            made.graph.inputs.append(weights)
            squares = squares * tensor(weights)
        terms.append(op.ReduceSum(squares, keepdims=0) * (1.0 / max(power[name], 1e-30)))
    append(made, reduce(op.Add, terms), name=LOSS)
    made.graph.outputs[:] = [made.graph.outputs[-1]]
    step = deferred_gradients(made, LOSS, _wanted(made))
    expand(step.model)
    return step


def _wanted(made: ir.Model) -> list[str]:
    """The parameters among the inputs of a graph."""
    kinds = ("weight:", "bias:", "step:", "low:")
    names = [str(v.name) for v in made.graph.inputs if str(v.name).startswith(kinds) and v.uses()]
    signed = {
        str(node.inputs[2].name)
        for node in made.graph
        if node.domain == DOMAIN and not node.attributes["non_negative"].as_int() and node.inputs[2] is not None
    }
    return [name for name in names if not name.startswith("low:") or name in signed]


def _with_known(model: ir.Model, known: Mapping[str, NDArray[np.generic]]) -> ir.Model:
    """The model with constants in place of these inputs."""
    for value in [value for value in model.graph.inputs if value.name in known]:
        model.graph.inputs.remove(value)
        held = ir.tensor(known[str(value.name)], name=value.name)
        value.const_value, value.type, value.shape = held, ir.TensorType(held.dtype), ir.Shape(held.shape.numpy())
        model.graph.register_initializer(value)
    return model


def _shapes(
    float_model: ir.Model, block: Block, sizes: Sizes, known: Mapping[str, NDArray[np.generic]]
) -> dict[str, tuple[int, ...]]:
    """The sizes of all tensors of a block, from those of what enters and leaves it."""
    made = _with_known(block_part(float_model, block.reads, block.writes), known)
    for value in made.graph.inputs:
        value.shape = ir.Shape(sizes[str(value.name)])
    infer_shapes(made)
    found = {name: sizes[name] for name in block.writes}
    for node in made.graph:
        for value in node.outputs:
            if value.shape is not None and all(isinstance(size, int) for size in value.shape):
                found[str(value.name)] = tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
    return found


class _Emitter:
    """Puts inputs in place of weights and biases, and grids whose rounding can be dropped in place of grids."""

    def __init__(self, graph: ir.Graph, layers: Collection[str]) -> None:
        self.graph = graph
        self.layers = layers
        self.inputs: dict[str, ir.Value] = {}

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        if layer.name in self.layers:
            return self._input(f"weight:{layer.name}", layer.weight_array().shape)
        return self._constant(layer, quant)

    def _constant(self, layer: Layer, quant: LayerQuant) -> ir.Value:
        array: NDArray[np.float32] = weights.quantized(layer.weight_array(), quant.weight)
        return add_initializer(self.graph, f"{layer.weight.name}/quantized", array)

    def bias(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value | None:
        if layer.name not in self.layers or not trains_bias(layer):
            return None
        return self._input(f"bias:{layer.name}", (layer.output_channels,))

    def dynamic(self, layer: Layer, quant: LayerQuant) -> None:
        layer.node.replace_input_with(layer.weight_index, self._constant(layer, quant))

    def table(self, layer: Layer, quant: LayerQuant) -> None:
        layer.node.replace_input_with(layer.weight_index, self._constant(layer, quant))

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        rank = len(value.shape or ())
        per_channel = len(quant.channel_scale)
        along = (1, per_channel, *[1] * (rank - 2)) if per_channel else ()
        code = ir.DataType.UINT8
        kinds = {"zero_point": code, "highest": code}
        shapes = {"scale": (per_channel,) if per_channel else (), "low": along, "high": along}
        shapes |= {"zero_point": shapes["scale"], "highest": along, "step": ()}
        inputs = []
        for name in INPUTS:
            shape = shapes.get(name)
            made = self._input(f"{name}:{key(quant)}", shape, kinds.get(name, ir.DataType.FLOAT), rank=rank)
            inputs.append(made)
        non_negative = not quant.zero_point and is_non_negative(value)
        return drop_quantize(self.graph, value, inputs, non_negative=non_negative)

    def fold_offset(self, layer: Layer, quant: LayerQuant) -> None:
        return None

    def carry(self, node: ir.Node, quantized: ir.Value, quant: ActivationQuant) -> None:
        return None

    def _input(
        self, name: str, shape: Sequence[int] | None, dtype: ir.DataType = ir.DataType.FLOAT, *, rank: int = 0
    ) -> ir.Value:
        if name not in self.inputs:
            sizes = ir.Shape([None] * rank) if shape is None else ir.Shape(shape)
            value = ir.Value(name=name, shape=sizes, type=ir.TensorType(dtype))
            self.graph.inputs.append(value)
            self.inputs[name] = value
        return self.inputs[name]
