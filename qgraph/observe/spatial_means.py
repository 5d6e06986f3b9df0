"""Means over an image, spread as those of real images are, where samples were distilled.

Distilled samples excite every channel as its BatchNormalization asks for, but all of them alike: each shows a little of
everything. A real image shows much of one thing, so that its mean of a channel lies farther from that of others. Over
eight convolutional networks for images and sound, the deviation of means before the last layer was 0.5 to 0.96 (median
0.8) of that of single positions; over distilled samples 0.2 to 0.7 (median 0.4), and the largest mean up to 2.4 times
too small. An operand that is clipped there ruins what 8 bits would keep.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

import qmath
from qgraph.graph.layers import attribute, present
from qgraph.observe.statistics import observe
from qgraph.onnxfile.edit import add_initializer, append_node, constant, take_place
from qgraph.onnxfile.model import Model
from qgraph.samples.dataset import Dataset

SHARE = 0.7  # of the deviation of single positions: that of means over real images, about
_TINY = 1e-12


def with_spread_means(model: Model, data: Dataset, *, threads: int | None = None) -> Model:
    """The model in which means over an image lie as far apart as real ones', to be observed in place of `model`."""
    means = [node for node in model.graph if _is_spatial_mean(node)]
    if not means:
        return model
    wanted = {str(value.name): 1 for node in means for value in (node.inputs[0], node.outputs[0]) if value is not None}
    seen = observe(model, data, tensors=wanted, histograms=False, threads=threads)
    copy = model.ir_model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    for node in means:
        whole, found = (seen[str(value.name)] for value in (present(node.inputs[0]), node.outputs[0]))
        if whole.channels is not None and found.channels is not None and found.count:
            _spread(copy.graph, values[str(node.outputs[0].name)], whole.channels, found.channels)
    copy.graph.sort()
    return dataclasses.replace(model, ir_model=copy)


def _is_spatial_mean(node: ir.Node) -> bool:
    """Whether a node averages every channel over all positions, and not to normalise by it."""
    value = node.inputs[0] if node.inputs else None
    if node.domain or value is None or any(reader.op_type == "Sub" for reader, _ in node.outputs[0].uses()):
        return False
    shape = () if value.shape is None else tuple(value.shape)
    if node.op_type == "AveragePool":
        return list(shape[2:]) == list(attribute(node, "kernel_shape", ())) != []
    if node.op_type == "ReduceMean":
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes", None)
        axes = [] if given is None else sorted(int(axis) % max(len(shape), 1) for axis in given)
        return len(shape) > 3 and axes == list(range(2, len(shape))) and not _is_power(value)
    return node.op_type == "GlobalAveragePool"


def _is_power(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and (maker.op_type == "Pow" or (maker.op_type == "Mul" and len(set(maker.inputs)) == 1))


def _spread(graph: ir.Graph, mean: ir.Value, whole: qmath.Statistics, found: qmath.Statistics) -> None:
    """Let y = m + f (x - m), between the ends of what was averaged, take the place of the means x about m.

    `whole` and `found` are the statistics of the channels before and after they are averaged.
    """
    inside, across = float(np.sum(whole.variance)), float(np.sum(found.variance))
    factor = SHARE * np.sqrt(inside / across) if across > _TINY * inside else 1.0
    if factor <= 1:
        return
    node = present(mean.producer())
    flat = node.op_type == "ReduceMean" and not attribute(node, "keepdims", 1)
    places = () if flat else (1,) * (len(present(node.inputs[0]).shape or (0, 0, 0, 0)) - 2)

    def held(what: str, numbers: object) -> ir.Value:
        array = np.asarray(numbers, np.float32)
        return add_initializer(graph, f"{mean.name}/{what}", array.reshape(array.shape and (1, -1, *places)))

    middle = held("middle", found.mean)
    away = append_node(graph, "Sub", [mean, middle], {}).outputs[0]
    farther = append_node(graph, "Mul", [away, held("factor", factor)], {}).outputs[0]
    moved = append_node(graph, "Add", [farther, middle], {}).outputs[0]
    above = append_node(graph, "Max", [moved, held("low", whole.min)], {}).outputs[0]
    within = append_node(graph, "Min", [above, held("high", whole.max)], {}).outputs[0]
    take_place(graph, mean, within, left="alike")
    present(away.producer()).replace_input_with(0, mean)
