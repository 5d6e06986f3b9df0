"""Types and shapes of inner tensors, including sequences and optionals, which onnx-ir's own pass overwrites."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from qgraph.onnxfile.readable import readable

_LARGE = 1000  # bytes: no shape depends on the values of so large a constant


def infer_shapes(model: ir.Model) -> None:
    """Give every tensor the type and shape that ONNX's shape inference finds, in place.

    Behind sizes that are computed, where inference loses even the number of axes, it goes on from convolutions, whose
    weights tell it. A model for which inference fails stays as it is.
    """
    _infer(model)
    if _give_ranks(model):
        _infer(model)


def _infer(model: ir.Model) -> None:
    outline = ir.to_proto(_outline(model))
    try:
        inferred = onnx.shape_inference.infer_shapes(outline, check_type=False, strict_mode=False, data_prop=True)
        found = ir.from_proto(readable(inferred, "the inferred model"))
    except Exception:  # of any kind that onnx raises; onnxruntime reports a model that does not run
        return
    for graph, other in zip(model.graphs(), found.graphs(), strict=True):
        known = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            twin = known.get(name)
            if twin is None:
                continue
            if twin.type is not None:
                value.type = twin.type
            if twin.shape is not None:
                value.shape = twin.shape


def _give_ranks(model: ir.Model) -> bool:
    """Whether there were convolutions whose result had no shape; now it has the axes and channels of the weight."""
    found = False
    for node in model.graph.all_nodes():
        if node.op_type != "Conv" or node.domain or node.outputs[0].shape is not None:
            continue
        weight = node.inputs[1]
        if weight is not None and weight.shape is not None:
            node.outputs[0].shape = ir.Shape([None, weight.shape[0], *[None] * (len(weight.shape) - 2)])
            found = True
    return found


def _outline(model: ir.Model) -> ir.Model:
    """The model with its large constants as inputs, so that inference need not carry them."""
    outline = model.clone()
    graph = outline.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _LARGE:
            value.shape, value.dtype, value.const_value = ir.Shape(tensor.shape.numpy()), tensor.dtype, None
            del graph.initializers[name]
            if not value.is_graph_input():
                graph.inputs.append(value)
    return outline
