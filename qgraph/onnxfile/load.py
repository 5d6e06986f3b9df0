"""Load and check ONNX models.

`load` reads a model and checks it; `qgraph.onnxfile.normalise` then brings it to the form that the rest of qgraph works
on, and `qgraph.onnxfile.write` saves models.
"""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from qgraph.errors import ModelError, ModelNotFoundError, ModelTypeError, first_line
from qgraph.onnxfile.content import check_content
from qgraph.onnxfile.edit import rename_twins
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.readable import readable
from qgraph.running import sessions as runtime

logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it logs a traceback for failed shape inference
MIN_OPSET = 7
_PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64})


def load(model: ModelLike, *, checker: bool = True) -> Model:
    """Read a model from a path, a `ModelProto`, an onnx-ir model or the result of a job, and check it.

    Without `checker`, ONNX's own is left to the caller (`check_model`), who first mends what it would refuse; nodes may
    then be in any order.

    Raises `ModelTypeError` for anything else, and `ModelError` when the file is missing, truncated, not ONNX, rejected
    by the ONNX checker, or of an unsupported opset.
    """
    if isinstance(model, Model):
        return model
    given = getattr(model, "model", None)  # a result
    if isinstance(given, ir.Model):
        return load(given, checker=checker)
    if isinstance(model, onnx.ModelProto):
        _check_opset(_opset(model), "the given ModelProto")
        proto = readable(model, "the given ModelProto")
        check_content(proto, "the given ModelProto")
        if checker:
            _check(model, "the given ModelProto")
        read = _with_own_constants(_read(proto, "the given ModelProto"))
        loaded = Model(ir_model=read, source="<ModelProto>", nbytes=model.ByteSize())
    elif isinstance(model, ir.Model):
        proto = ir.to_proto(model)
        if checker:
            _check(proto, "the given model")
        given = _with_own_constants(model.clone())
        for value in given.graph.initializers.values():
            if isinstance(value.const_value, ir.LazyTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype)
        loaded = Model(ir_model=given, source="<onnx_ir.Model>", nbytes=proto.ByteSize())
    elif isinstance(model, (str, os.PathLike)):
        loaded = _load_file(Path(model), checker=checker)
    else:
        kind = "None" if model is None else type(model).__name__
        way = ": qgraph.apply(model, plan) makes a model of it" if kind == "QuantPlan" else ""
        raise ModelTypeError(f"a model is a path, an onnx.ModelProto, an onnx-ir model or a result, not {kind}{way}")
    _check_opset(loaded.opset, loaded.source)
    if not checker or not _in_order(loaded.ir_model.graph):
        _sort(loaded)
    rename_twins(loaded.ir_model)
    return loaded


def check_model(model: Model) -> None:
    """Raise `ModelError` if ONNX's checker refuses the model."""
    _check(ir.to_proto(model.ir_model), model.source)


def _load_file(path: Path, *, checker: bool) -> Model:
    if not path.exists():
        raise ModelNotFoundError(f"no such model file: {path}")
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file")
    try:
        proto = onnx.load(path, load_external_data=False, format="protobuf")
    except DecodeError:
        raise ModelError(f"{path} is not an ONNX file, or is truncated: protobuf cannot decode it") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no graph; export the model again")
    _check_opset(_opset(proto), str(path))
    given, proto = proto, readable(proto, str(path))
    check_content(proto, str(path), folder=path.parent)
    if checker:
        _check(str(path) if _has_external_data(given) else given, str(path))
    model = _in_arrays(_read(proto, str(path)))
    ir.external_data.set_base_dir(model.graph, path.parent)
    nbytes = path.stat().st_size
    external = [t for v in model.graph.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor)]
    if external:
        size = sum(t.nbytes for t in external)
        nbytes += size
        try:
            if size <= runtime.PROTOBUF_LIMIT:  # beyond that, weights stay mapped from their file
                ir.external_data.load_to_model(model)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot read its external data: {first_line(error)}") from error
    return Model(ir_model=model, source=str(path), nbytes=nbytes)


def _sort(model: Model) -> None:
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelError(f"{model.source} is not a valid ONNX graph: {first_line(error)}") from error


def _in_order(graph: ir.Graph) -> bool:
    """Whether every node comes behind those whose results it reads: ONNX asks for it, onnxruntime does not."""
    seen: set[ir.Node | None] = {None}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if any(value is not None and value.producer() not in seen for value in node.inputs):
            return False
        seen.add(node)
    return True


def _ordered(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with its nodes in order, as some converters leave them out of it; None if they were, or cannot be."""
    try:
        model = ir.from_proto(proto)
        if _in_order(model.graph):
            return None
        model.graph.sort()
        return ir.to_proto(model)
    except Exception:  # the checker has said what is wrong
        return None


def _read(proto: onnx.ModelProto, where: str) -> ir.Model:
    try:
        return ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{where} cannot be read as an ONNX graph: {error}") from error


def _with_own_constants(model: ir.Model) -> ir.Model:
    """The model with copies of the constants of bodies, whose names change later: the caller keeps those of his own."""
    for body in model.graph.subgraphs():
        for value in body.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.TensorProtoTensor):
                own = onnx.TensorProto()
                own.CopyFrom(tensor.raw)
                value.const_value = ir.serde.deserialize_tensor(own)
            elif tensor is not None:
                value.const_value = copy.copy(tensor)
    return model


def _in_arrays(model: ir.Model) -> ir.Model:
    """The model with its weights as arrays: a tensor of protobuf copies its bytes whenever it is read."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype in _PLAIN:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return model


def _check(model: onnx.ModelProto | str, where: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=False)
    except onnx.checker.ValidationError as error:
        ordered = None if isinstance(model, str) else _ordered(model)
        if ordered is not None:
            return _check(ordered, where)
        raise ModelError(f"{where} is refused by the ONNX checker: {first_line(error)}") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{where} cannot be checked: {first_line(error)}") from error


def _opset(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def _check_opset(opset: int, source: str) -> None:
    """Raise `ModelError` for an opset below `MIN_OPSET`, or one that the installed onnxruntime does not load."""
    if MIN_OPSET <= opset <= runtime.KNOWN_OPSET:
        return
    latest = runtime.latest_opset()
    if not MIN_OPSET <= opset <= latest:
        raise ModelError(
            f"{source} has opset {opset}; supported are {MIN_OPSET} to {latest}, the newest that onnxruntime "
            f"{runtime.version} loads (onnx.version_converter.convert_version changes it)"
        )


def _has_external_data(proto: onnx.ModelProto) -> bool:
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
