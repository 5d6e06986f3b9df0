"""The training graph: the quantized network with its loss and all gradients, which is never rebuilt.

Its inputs are samples, targets, weights, scales and offsets (`qgraph.gradient.step` runs it).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from qgraph.errors import ModelError, PlanError
from qgraph.gradient import Deferred, GradientError, deferred_gradients
from qgraph.gradient.step import LOSS, OPSET
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.walk import ancestors, descendants, has_bodies
from qgraph.lowering.places import put_in_place
from qgraph.methods.lsqplus.batch_norm import normalise_results
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.loss import Targets, append_loss, targets_of
from qgraph.methods.lsqplus.quantizer import DOMAIN, expand, learned_quantize
from qgraph.methods.lsqplus.trained import Trained, TrainedGrid
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.noise import noise
from qgraph.onnxfile.opset import raise_opset
from qgraph.onnxfile.shapes import infer_shapes
from qgraph.plan.plan import ActivationQuant, LayerQuant
from qgraph.running.sessions import Session
from qgraph.samples.layout import FIRST, Axes


def trainable_graph(trained: Trained, *, batch: int, axes: Axes = FIRST) -> ir.Model:
    """The quantized network with weights, biases and grids as inputs, for a fixed batch size.

    `axes` are those of inputs whose batch does not run along axis 0.
    """
    net = raise_opset(trained.net, max(trained.net.opset, OPSET))
    net = replace(net, ir_model=net.ir_model.clone())
    _fix_batch(net.ir_model, batch, axes)
    by_key: dict[tuple[str, str], TrainedGrid] = {(grid.tensor, grid.role): grid for grid in trained.grids}
    graph = put_in_place(net, trained.plan, lambda graph: _Emitter(graph, by_key, trained.normalised))
    graph.opset_imports[DOMAIN] = 1
    graph.graph.outputs.extend(normalise_results(graph, trained.normalised))
    return graph


def training_graph(
    trained: Trained, targets: Targets, config: LsqPlusConfig, *, batch: int, labelled: bool, axes: Axes = FIRST
) -> Deferred:
    """The network, its loss and its gradients in standard operators, without the weight gradients of convolutions.

    Raises `GradientError` for an operator that cannot be differentiated.
    """
    _check_bodies(trained, targets)
    graph = trainable_graph(trained, batch=batch, axes=axes)
    values = ir.convenience.create_value_mapping(graph.graph)
    append_loss(graph, targets, config, batch=batch, labelled=labelled)
    graph.graph.outputs.extend(values[name] for name in trained.of_batches)
    step = deferred_gradients(graph, LOSS, wanted_gradients(trained))
    expand(step.model)
    return step


def _check_bodies(trained: Trained, targets: Targets) -> None:
    """Raise `GradientError` for a Loop, Scan or If between a layer and what is learned from.

    Gradients would have to pass it; anywhere else such nodes are only run.
    """
    view = GraphView(trained.net)
    before = ancestors(view.values[name] for name in targets.watched)
    for node in descendants([view.by_name[layer.name].output for layer in trained.plan.layers]):
        if node in before and has_bodies(node):
            raise GradientError(
                f"operator {node.op_type} of node '{node.name}' has no gradient rule, since it runs a subgraph: the "
                f"layers before it cannot be trained; qgraph quantize takes the model as it is"
            )


def check_trainable(net: Model, layers: Sequence[Layer], config: LsqPlusConfig, *, axes: Axes = FIRST) -> None:
    """Raise `GradientError` if the weights of `layers` cannot be trained, before hours are spent on making data."""
    graph = raise_opset(net, max(net.opset, OPSET)).ir_model.clone()
    _fix_batch(graph, config.shard, axes)
    append_loss(graph, targets_of(graph, net.source), config, batch=config.shard, labelled=False)
    deferred_gradients(graph, LOSS, [str(layer.weight.name) for layer in layers])


def wanted_gradients(trained: Trained) -> list[str]:
    """The inputs of the training graph whose gradients are needed."""
    names = [f"weight:{layer}" for layer in trained.weights]
    names += [slot.name for slot in trained.slots.values() if slot.kind in ("bias", "scale", "offset", "gain")]
    return names


class _Emitter:
    """Puts inputs in place of weights and biases, and learned quantizers in place of grids."""

    def __init__(
        self, graph: ir.Graph, grids: Mapping[tuple[str, str], TrainedGrid], constant_biases: Collection[str]
    ) -> None:
        self.graph = graph
        self.grids = grids
        self.constant_biases = constant_biases
        self.inputs: dict[str, ir.Value] = {}

    def weight(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value:
        return self._input(f"weight:{layer.name}", layer.weight_array().shape)

    def bias(self, layer: Layer, quant: LayerQuant, operand: ActivationQuant | None) -> ir.Value | None:
        if layer.bias is None or layer.bias.const_value is None or layer.name in self.constant_biases:
            return None
        return self._input(f"bias:{layer.name}", tuple(layer.bias.const_value.shape.numpy()))

    def dynamic(self, layer: Layer, quant: LayerQuant) -> None:
        raise PlanError(
            f"layer '{layer.name}' is dynamic and has no grid of its operand to train: let it run on integers"
        )

    def table(self, layer: Layer, quant: LayerQuant) -> None:
        raise PlanError(f"layer '{layer.name}' is a table, whose rows are not trained: leave it out of the plan")

    def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
        grid = self.grids[quant.tensor, quant.role]
        scale, low, high = (self._input(f"{kind}:{grid.key}", ()) for kind in ("scale", "low", "high"))
        return learned_quantize(
            self.graph,
            value,
            scale,
            low,
            high,
            self._input(f"zero_point:{grid.key}", (), ir.DataType.UINT8),
            self._input(f"offset:{grid.key}", ()) if grid.offset != "none" else None,
            qmax=grid.qmax,
            shifted=grid.offset == "real",
            non_negative=grid.non_negative,
        )

    def fold_offset(self, layer: Layer, quant: LayerQuant) -> None:
        return None

    def carry(self, node: ir.Node, quantized: ir.Value, quant: ActivationQuant) -> None:
        return None

    def _input(self, name: str, shape: Sequence[int], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        if name not in self.inputs:
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
            self.graph.inputs.append(value)
            self.inputs[name] = value
        return self.inputs[name]


def _fix_batch(net: ir.Model, batch: int, axes: Axes) -> None:
    """Fix the batch size of inputs and infer all other shapes: static shapes save arithmetic at every step."""
    for value in net.graph.inputs:
        axis = axes.get(str(value.name), 0)
        if value.shape is not None and len(value.shape) and axis is not None and not isinstance(value.shape[axis], int):
            value.shape = ir.Shape([batch if i == axis else size for i, size in enumerate(value.shape)])
    declared = [output.shape for output in net.graph.outputs]
    for node in net.graph:
        for output in node.outputs:
            output.shape = None
    infer_shapes(net)
    _measure_bodies(net)
    for output, shape in zip(net.graph.outputs, declared, strict=True):
        output.shape = output.shape if output.shape is not None else shape  # shapes are not inferred after a Loop


def _measure_bodies(net: ir.Model) -> None:
    """Give the results of a Loop or Scan the sizes that they have when run.

    Shape inference loses them. Those that differ between two runs stay open.
    """
    values = [v for node in net.graph if has_bodies(node) for v in node.outputs if v.shape is None and v.uses()]
    if not values:
        return
    feeds = noise(Model(ir_model=net, source="the training graph", nbytes=0), 8)
    try:
        session = Session(net, outputs=[str(v.name) for v in values], threads=1)
        runs = [session.run({name: x * factor for name, x in feeds.items()}) for factor in (1, 0)]
    except ModelError:
        return  # where a gradient needs the shape, it says so
    for value in values:
        first, second = (run[str(value.name)].shape for run in runs)
        if len(first) == len(second):
            value.shape = ir.Shape([a if a == b else None for a, b in zip(first, second, strict=True)])
    infer_shapes(net)
