"""Other forms of a network: in half or double precision, and quantized already."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.errors import QGraphError

PRECISIONS = {"float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}


def in_precision(
    model: onnx.ModelProto, feeds: Mapping[str, Any], kind: int
) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """The same network with every float tensor of type `kind`; None where an operator has no such form."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for graph in _graphs(changed.graph):
        _retype(graph, kind)
    try:
        onnx.checker.check_model(changed, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return changed, {name: x.astype(dtype) if x.dtype == np.float32 else x for name, x in feeds.items()}


def quantized_already(model: onnx.ModelProto, feeds: Mapping[str, Any], **options: Any) -> onnx.ModelProto | None:
    """What quantize makes of it; None where it is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            made = qgraph.quantize(model, [feeds], method="minmax", threads=1, **options)
    except QGraphError:
        return None
    return ir.to_proto(made.model)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _retype(graph: onnx.GraphProto, kind: int) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in graph.initializer:
        _convert(tensor, kind)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _convert(attribute.t, kind)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind


def _convert(tensor: TensorProto, kind: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
