"""Checks of a model file's content, so that native parsers, which trust it, neither crash nor allocate huge memory.

The ONNX checker looks at structure. It does not check whether a tensor holds the bytes that its dimensions imply, nor
whether a stride is zero, though shape inference and onnxruntime divide by the one and index by the other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, TensorProto, helper

from qgraph.errors import ModelError

_LIMIT = 2**31  # of dimensions and integer attributes
_MAX_RANK = 64
_MOST_VALUES = 2**33  # of an input: 32 GiB of floats for a single run
_POSITIVE = frozenset(
    {"strides", "dilations", "kernel_shape", "group", "blocksize", "block_size", "hidden_size", "num_outputs"}
)
_AXES = frozenset({"axis", "axes", "perm", "batch_axis", "time_axis", "batch_dims", "scan_input_axes"})
_PACKED = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}  # elements to a byte


def check_content(model: onnx.ModelProto, where: str, *, folder: Path | None = None) -> None:
    """Raise `ModelError`, naming the tensor or node, for content that no tool should trust.

    External data must be in regular files in `folder` or below it, not behind links; without a folder there may be
    none.
    """
    for value in model.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
        too_large = math.prod(d for d in dims if d > 0) >= _MOST_VALUES
        if any(not 0 <= d < _LIMIT for d in dims) or len(dims) > _MAX_RANK or too_large:
            raise ModelError(f"{where}: input '{value.name}' has the impossible shape {dims}; export the model again")
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            check_tensor(tensor, where, folder)
        for node in graph.node:
            _check_node(node, where, folder)
    for function in model.functions:
        for node in function.node:
            _check_node(node, where, folder)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and the bodies of control flow inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(inner)


def _check_node(node: onnx.NodeProto, where: str, folder: Path | None) -> None:
    if not all(isinstance(text, str) for text in (node.name, node.op_type, *node.input, *node.output)):
        raise ModelError(f"{where}: a node's names are not text; the file is damaged")
    for attribute in node.attribute:
        for tensor in attribute.tensors:
            check_tensor(tensor, where, folder)
        if attribute.HasField("t"):
            check_tensor(attribute.t, where, folder)
        numbers = [attribute.i] if attribute.type == AttributeProto.INT else list(attribute.ints)
        if not numbers or node.domain not in ("", "ai.onnx"):
            continue
        low, high = -(2**63), 2**63
        if attribute.name in _POSITIVE:
            low, high = 1, _LIMIT if attribute.name != "num_outputs" else 2**16
        elif attribute.name in _AXES:
            low, high = -_MAX_RANK, _MAX_RANK
        elif attribute.name == "pads":
            low, high = -_LIMIT, _LIMIT
        if any(not low <= n < high for n in numbers):
            raise ModelError(
                f"{where}: {node.op_type} '{node.name}' has {attribute.name} = {numbers}, outside of "
                f"{low}..{high - 1}; export the model again"
            )


def check_tensor(tensor: TensorProto, where: str, folder: Path | None) -> None:
    """Raise `ModelError` unless a tensor holds what its shape implies; external data must be in `folder`."""
    name, dims = tensor.name, list(tensor.dims)
    if any(not 0 <= d < 2**62 for d in dims) or len(dims) > _MAX_RANK:
        raise ModelError(f"{where}: tensor '{name}' has the impossible shape {dims}; export the model again")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, math.prod(dims), where, folder)
        return
    size = math.prod(dims)
    if tensor.data_type == TensorProto.STRING:
        held, needed = len(tensor.string_data), size
    elif tensor.HasField("raw_data"):
        held, needed = len(tensor.raw_data), _bytes(tensor, size, where)
    else:
        held = sum(len(field) for field in (tensor.float_data, tensor.int32_data, tensor.int64_data))
        held += len(tensor.double_data) + len(tensor.uint64_data)
        complex_parts = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
        needed = -(-size // _PACKED.get(_type_name(tensor, where), 1)) * complex_parts
    if held != needed:
        raise ModelError(
            f"{where}: tensor '{name}' of shape {dims} holds {held} bytes or numbers where {needed} are needed; "
            f"the file is damaged"
        )


def _check_external(tensor: TensorProto, size: int, where: str, folder: Path | None) -> None:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    start = f"{where}: tensor '{tensor.name}' names '{location}' as the file of its data"
    if folder is None:
        raise ModelError(f"{start}, and a ModelProto has no folder: give the path of its file")
    path = folder / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts:
        raise ModelError(f"{start}: only files beside the model or in folders below it are read")
    if path.is_symlink() or path.resolve() != folder.resolve() / location or not path.is_file():
        raise ModelError(f"{start}, which is not a regular file there; keep the model and its data together")
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", path.stat().st_size - offset))
    except ValueError:
        raise ModelError(f"{start}, with an offset or length that is not a number") from None
    needed = _bytes(tensor, size, where)
    if offset < 0 or length != needed or offset + length > path.stat().st_size:
        raise ModelError(
            f"{start}, {length:,} bytes from {offset:,}: {needed:,} are needed, and the file has "
            f"{path.stat().st_size:,}"
        )
    if needed > memory():
        raise ModelError(f"{start}; it alone takes {needed:,} bytes, and this machine has {memory():,} of memory")


def memory() -> int:
    """Bytes of memory of the machine, where the system tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**63


def _type_name(tensor: TensorProto, where: str) -> str:
    try:
        return str(TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        raise ModelError(f"{where}: tensor '{tensor.name}' has the unknown type {tensor.data_type}") from None


def _bytes(tensor: TensorProto, size: int, where: str) -> int:
    kind = _type_name(tensor, where)
    if kind in _PACKED:
        return -(-size // _PACKED[kind])
    try:
        return size * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError, TypeError):
        raise ModelError(f"{where}: tensor '{tensor.name}' has the type {kind}, which holds no numbers") from None
