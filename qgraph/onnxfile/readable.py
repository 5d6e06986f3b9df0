"""Models in a form that onnx-ir can read.

* Dimensions of -1 or 0 (which old exporters write for unknown sizes) become open ones.
* Sparse weights become dense, as onnxruntime makes them when it loads a model.
* The type of a tensor that is a map, or a sequence of maps (ZipMap), is stored as a note on the tensor, and restored by
  `restore_types`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from qgraph.errors import ModelError
from qgraph.onnxfile.content import check_tensor, graphs, memory

TYPE_NOTE = "qgraph: type"
_CONTAINERS = ("sequence_type", "optional_type")


def readable(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model in a form that onnx-ir reads: the model itself, or a changed copy if anything had to be changed.

    Raises `ModelError` for sparse weights that contradict themselves, and for inputs that are maps.
    """
    for value in model.graph.input:
        if _is_map(value.type):
            raise ModelError(
                f"{where}: input '{value.name}' is a {_named(value.type)}, and samples are tensors: convert the model "
                f"with one tensor as its input, without the step that takes dictionaries"
            )
    if not any(map(_needs_work, graphs(model.graph))):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    written = {value.name for value in copy.graph.output}  # where 0 may be intended: an empty state
    for graph in graphs(copy.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            _open_dimensions(value.type, zeros=value.name not in written)
            _set_type_aside(value)
        _densify(graph, where)
    return copy


def restore_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Restore the types that `readable` stored as notes, in place."""
    for value in (*model.graph.output, *model.graph.value_info):
        for note in [n for n in value.metadata_props if n.key == TYPE_NOTE]:
            value.type.ParseFromString(base64.b64decode(note.value))
            value.metadata_props.remove(note)
    return model


def type_text(value: ir.Value) -> str:
    """The type of a tensor for display: FLOAT, or seq(...) and the like as in onnxruntime."""
    proto = onnx.ValueInfoProto(type=ir.to_proto(value.type)) if value.type is not None else onnx.ValueInfoProto()
    note = value.metadata_props.get(TYPE_NOTE)
    if note is not None:
        proto.type.ParseFromString(base64.b64decode(note))
    plain = note is None and proto.type.WhichOneof("value") in (None, "tensor_type")
    return str(value.dtype) if plain else _named(proto.type)


def _needs_work(graph: onnx.GraphProto) -> bool:
    values = (*graph.input, *graph.output, *graph.value_info)
    return (
        bool(graph.sparse_initializer)
        or any(_is_map(v.type) or any(_closed_by_mistake(d) for d in _dimensions(v.type)) for v in values)
        or any(_sparse_attribute(node) is not None for node in graph.node)
    )


def _dimensions(kind: onnx.TypeProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    which = kind.WhichOneof("value")
    if which in _CONTAINERS:
        yield from _dimensions(getattr(kind, which).elem_type)
    elif which in ("tensor_type", "sparse_tensor_type"):
        yield from getattr(kind, which).shape.dim


def _closed_by_mistake(dimension: onnx.TensorShapeProto.Dimension) -> bool:
    return dimension.HasField("dim_value") and dimension.dim_value <= 0


def _open_dimensions(kind: onnx.TypeProto, *, zeros: bool) -> None:
    for dimension in _dimensions(kind):
        if _closed_by_mistake(dimension) and (zeros or dimension.dim_value < 0):
            dimension.ClearField("dim_value")


def _is_map(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    return which == "map_type" or (which in _CONTAINERS and _is_map(getattr(kind, which).elem_type))


def _named(kind: onnx.TypeProto) -> str:
    """The name of such a type in onnxruntime: map(int64,tensor(float)), seq(map(...))."""
    which = kind.WhichOneof("value")
    if which in _CONTAINERS:
        return f"{'seq' if which == 'sequence_type' else 'optional'}({_named(getattr(kind, which).elem_type)})"
    if which == "map_type":
        key = onnx.TensorProto.DataType.Name(kind.map_type.key_type).lower()
        return f"map({key},{_named(kind.map_type.value_type)})"
    return f"tensor({onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()})"


def _set_type_aside(value: onnx.ValueInfoProto) -> None:
    if _is_map(value.type):
        value.metadata_props.add(key=TYPE_NOTE, value=base64.b64encode(value.type.SerializeToString()).decode())
        value.ClearField("type")


def _densify(graph: onnx.GraphProto, where: str) -> None:
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, sparse.values.name, where))
    graph.ClearField("sparse_initializer")
    for node in graph.node:
        attribute = _sparse_attribute(node)
        if attribute is not None:
            dense = _dense(attribute.sparse_tensor, node.output[0], where)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _sparse_attribute(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """The sparse tensor of a Constant."""
    return next((a for a in node.attribute if a.name == "sparse_value"), None) if node.op_type == "Constant" else None


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    """The tensor with its zeros: indices are positions in the flattened tensor, or one row per value."""
    shape = tuple(sparse.dims)
    check_tensor(sparse.values, where, None)
    check_tensor(sparse.indices, where, None)
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    size = math.prod(shape)
    linear = indices.ndim == 1 and len(indices) == values.size
    by_axis = indices.shape == (values.size, len(shape))
    inside = linear or (by_axis and bool(((indices >= 0) & (indices < np.array(shape))).all()))
    flat = indices if linear else np.ravel_multi_index(tuple(indices.T), shape) if by_axis and inside else None
    placed = flat is not None and (not flat.size or 0 <= flat.min() <= flat.max() < size)
    if any(d < 1 for d in shape) or size * values.itemsize > memory() or not placed:
        raise ModelError(
            f"{where}: the sparse tensor '{name}' of shape {list(shape)} has {values.size} values at places that are "
            f"not inside it; the file is damaged"
        )
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    return numpy_helper.from_array(dense.reshape(shape), name)
