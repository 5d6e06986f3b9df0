"""Cut a network at one layer, into the part before it and the part that depends on how it is quantized.

The cut runs through tensors of the original model, so that it means the same under every plan. What does not depend on
the layer is computed once and kept; the part behind takes the layer's operand, weight and bias as inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.walk import descendants, reads
from qgraph.lowering.places import shift_bias
from qgraph.lowering.simulate import simulate
from qgraph.onnxfile.edit import constant
from qgraph.onnxfile.model import Model
from qgraph.plan.plan import QuantPlan
from qgraph.running.unused import remove_unused

SOURCE, OPERAND, WEIGHT, BIAS = "search/source", "search/operand", "search/weight", "search/bias"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """A network, quantized by a plan except for one layer, and cut at that layer."""

    prefix: ir.Model
    """The whole network; `source` and `frontier` are among its tensors."""
    suffix: ir.Model
    """Computes the network's outputs from `frontier`, OPERAND, WEIGHT and BIAS."""
    alone: ir.Model
    """Computes the layer's result from OPERAND and WEIGHT, without bias."""
    source: str
    """The tensor that the layer reads."""
    frontier: tuple[str, ...]
    """The tensors of the original model that the suffix reads besides."""
    bias: NDArray[np.float32]
    """BIAS for a shift of zero."""
    bias_unit: float
    """How much a unit of shift adds to BIAS."""

    def bias_for(self, shift: tuple[float, ...]) -> NDArray[np.float32]:
        """BIAS for a shift per output channel; () for none."""
        if not shift:
            return self.bias
        return (self.bias + self.bias_unit * np.asarray(shift).reshape(self.bias.shape)).astype(np.float32)


def cut(model: Model, plan: QuantPlan, name: str) -> Cut:
    """Cut the simulation of `plan`, which must not quantize the layer `name`, at that layer."""
    originals = set(GraphView(model).values)
    prefix = simulate(model, plan)
    entry = GraphView(dataclasses.replace(model, ir_model=prefix)).by_name[name].input
    if entry.name not in originals:
        entry.name = SOURCE
    suffix = prefix.clone()
    layer = GraphView(dataclasses.replace(model, ir_model=suffix)).by_name[name]
    bias, unit = _bias_input(suffix.graph, layer)
    weight, operand = _input(WEIGHT, layer.weight), _input(OPERAND, layer.input)
    layer.node.replace_input_with(layer.weight_index, weight)
    layer.node.replace_input_with(1 - layer.weight_index, operand)
    base = constant(bias)
    fed = _input(BIAS, bias)
    bias.replace_all_uses_with(fed)
    suffix.graph.inputs.extend((operand, weight, fed))
    suffix.graph.sort()  # a MatMul's shift is an Add at the end
    frontier = _frontier(suffix.graph, {operand, weight, fed}, originals)
    alone = _alone(suffix, layer)
    return Cut(
        prefix=prefix,
        suffix=part(suffix, inputs=frontier),
        alone=alone,
        source=str(entry.name),
        frontier=tuple(sorted(frontier)),
        bias=np.asarray(base, np.float32),
        bias_unit=unit,
    )


def part(model: ir.Model, *, inputs: Collection[str], outputs: Iterable[str] | None = None) -> ir.Model:
    """The nodes that compute `outputs` (by default those of the graph) given the tensors `inputs`."""
    net = model.clone()
    graph = net.graph
    values = ir.convenience.create_value_mapping(graph)
    if outputs is not None:
        graph.outputs.clear()
        graph.outputs.extend(values[name] for name in outputs)
    for name in inputs:
        value = values.get(name)
        if value is not None and value.producer() is not None:
            fresh = _input(name, value)
            value.name = f"{name}/computed"
            value.replace_all_uses_with(fresh, replace_graph_outputs=True)
            graph.inputs.append(fresh)
    for index, value in enumerate(graph.outputs):
        if value.producer() is None:  # onnxruntime needs an operator between an input and an output
            node = ir.node("Identity", [value])
            graph.append(node)
            node.outputs[0].name = f"{value.name}/same"
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.outputs[index] = node.outputs[0]
    remove_unused(net)
    used = [v for v in graph.inputs if v.uses()]
    graph.inputs.clear()
    graph.inputs.extend(used)
    return net


def _bias_input(graph: ir.Graph, layer: Layer) -> tuple[ir.Value, float]:
    """The layer's own constant to which a shift is added, and how much a unit of shift adds to it."""
    carrier = shift_bias(graph, layer, np.zeros(layer.output_channels))
    if carrier is layer.output:
        beta = layer.bias_factor
        value = layer.node.inputs[2]
        unit = 1.0 / (beta or 1.0)
    else:
        adding = carrier.producer()
        value, unit = (adding.inputs[1] if adding is not None else None), 1.0
    if value is None:
        raise ValueError(f"'{layer.name}' has no bias to feed")
    return value, unit


def _frontier(graph: ir.Graph, fed: set[ir.Value], originals: set[str]) -> set[str]:
    """The tensors of the original model that the nodes behind `fed` read besides, and outputs that do not change."""
    behind = descendants(fed)
    pending = [v for node in behind for v in reads(node)]
    pending += [v for v in graph.outputs if v.producer() not in behind]
    found: set[str] = set()
    while pending:
        value = pending.pop()
        producer = value.producer()
        if value in fed or producer in behind or value.const_value is not None:
            continue
        if str(value.name) in originals:
            found.add(str(value.name))
        elif producer is not None:  # made by simulate: computed again from its sources
            behind[producer] = None
            pending.extend(reads(producer))
    return found


def _alone(model: ir.Model, layer: Layer) -> ir.Model:
    """A model of the layer's node alone, without bias."""
    operand, weight = _input(OPERAND, layer.input), _input(WEIGHT, layer.weight)
    inputs = [operand, weight] if layer.weight_index == 1 else [weight, operand]
    attributes: dict[str, Any] = {k: a.value for k, a in layer.node.attributes.items()}
    node = ir.node(layer.op, inputs, attributes=attributes)
    node.outputs[0].name = "search/result"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([operand, weight], [node.outputs[0]], nodes=[node], opset_imports=model.opset_imports)
    graph.name = "layer"
    return ir.Model(graph, ir_version=model.ir_version)


def _input(name: str, like: ir.Value) -> ir.Value:
    """A graph input with the type and rank of `like` and open sizes."""
    shape = None if like.shape is None else ir.Shape([None] * len(like.shape))
    return ir.Value(name=name, type=like.type or ir.TensorType(ir.DataType.FLOAT), shape=shape)
