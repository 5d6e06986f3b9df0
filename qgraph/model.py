"""Loading, checking, normalising and saving ONNX models: the only place that touches files with models in them.

`load` reads and checks a model. `normalise` brings it to the one form that the rest of qgraph works on: functions
inlined, constants lifted to initializers, initializers removed from the inputs, constant weight chains folded,
BatchNormalization folded into the layer before it, every node named, shapes inferred.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common as passes

from qgraph import runtime
from qgraph.bounds import GROWING_OPS, check_bounds
from qgraph.errors import ModelError, QGraphError, UsageError
from qgraph.folding import (
    bypass_identities,
    constant_nodes,
    fold_batch_normalization,
    fold_constants,
    fuse_matrix_product_bias,
)
from qgraph.sanity import check_content

ModelLike: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | ir.Model | Model"

logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it logs failed shape inference with a traceback; we go on
MIN_OPSET = 7
MAX_OPSET = 26  # what onnxruntime 1.31 accepts; onnx writes higher ones by default


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A checked ONNX model: its graph, where it came from and how many bytes it took there."""

    ir_model: ir.Model
    source: str
    nbytes: int
    digest: str = ""
    """SHA-256 of what a normalised model computes: nodes, attributes, weights and interface."""

    def __reduce__(self) -> tuple[Callable[..., Model], tuple[bytes, str, int, str]]:
        """Pickled as ONNX; the digest stays, since nothing is computed anew."""
        return _unpickled, (ir.to_proto(self.ir_model).SerializeToString(), self.source, self.nbytes, self.digest)

    @property
    def opset(self) -> int:
        return self.ir_model.opset_imports.get("", 1)

    @property
    def graph(self) -> ir.Graph:
        return self.ir_model.graph

    @property
    def normalised(self) -> bool:
        return bool(self.digest)

    def input_values(self) -> list[ir.Value]:
        """The inputs a caller feeds: graph inputs that are not initializers."""
        return [v for v in self.graph.inputs if v.name not in self.graph.initializers]


def _unpickled(data: bytes, source: str, nbytes: int, digest: str) -> Model:
    net = ir.from_proto(onnx.ModelProto.FromString(data))
    return Model(ir_model=net, source=source, nbytes=nbytes, digest=digest)


def load(model: ModelLike) -> Model:
    """Read a model from a path, a `ModelProto` or an onnx-ir model, and check it.

    Raises `ModelError` when the file is missing, truncated, not ONNX, refused by the ONNX checker, or of an unknown
    opset.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, onnx.ModelProto):
        check_content(model, "the given ModelProto")
        _check(model, "the given ModelProto")
        loaded = Model(ir_model=ir.from_proto(model), source="<ModelProto>", nbytes=model.ByteSize())
    elif isinstance(model, ir.Model):
        proto = ir.to_proto(model)
        _check(proto, "the given model")
        given = model.clone()
        for value in given.graph.initializers.values():
            if isinstance(value.const_value, ir.LazyTensor):
                value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype)
        loaded = Model(ir_model=given, source="<onnx_ir.Model>", nbytes=proto.ByteSize())
    else:
        loaded = _load_file(Path(model))
    _check_versions(loaded)
    return loaded


def normalise(model: Model, *, fold_bn: bool = True) -> Model:
    """The form every method works on; computes the same function as `model`, which stays as it was.

    With `fold_bn`, BatchNormalization in inference form is folded into the convolution or matrix product before it.
    """
    if model.normalised:
        return model
    net = model.ir_model.clone()
    transforms: list[Callable[[ir.Model], object]] = [
        passes.InlinePass() if net.functions else lambda _: None,
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveInitializersFromInputsPass(),
        _rename_twins,
        bypass_identities,
        _check_constants,
        fold_constants,
        *([fold_batch_normalization] if fold_bn else []),
        passes.RemoveUnusedNodesPass(),
        passes.TopologicalSortPass(),
        name_everything,
        _infer_shapes,
        fuse_matrix_product_bias,
        _drop_notes,
    ]
    try:
        for transform in transforms:
            transform(net)
        digest = _digest(net)
    except QGraphError:
        raise
    except Exception as error:  # of any kind: the file promised what it does not hold
        raise ModelError(f"{model.source} is not a valid ONNX graph: {first_line(error)}") from error
    net.ir_version = min(max(net.ir_version, runtime.MIN_IR_VERSION), runtime.MAX_IR_VERSION)
    return Model(ir_model=net, source=model.source, nbytes=model.nbytes, digest=digest)


def _drop_notes(net: ir.Model) -> None:
    """Without what exporters note on nodes and tensors (source lines, stack traces); the model's own notes stay."""
    for node in ir.traversal.RecursiveGraphIterator(net.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def save(model: ir.Model | Model, path: str | os.PathLike[str], *, source: str | None = None) -> int:
    """Write `model` to `path`, whole or not at all, and return its size in bytes.

    The file is written beside its target, checked, flushed to disk and renamed over it. Weights beyond what one
    protobuf holds go to `NAME.data` beside it.
    """
    target = Path(path)
    check_writable(target, source=source)
    model = model.ir_model if isinstance(model, Model) else model
    try:
        if not runtime.fits_one_file(model):
            return _save_with_external_data(model, target)
        data = ir.to_proto(model).SerializeToString(deterministic=True)
        write_atomically(target, data)
        return len(data)
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error.strerror or error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old content or the new one, never a part."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str], *, source: str | None = None) -> None:
    """Raise before any work is done if `path` cannot be written or is the input itself."""
    target = Path(path)
    if source is not None and target.exists() and Path(source).exists() and os.path.samefile(target, source):
        raise UsageError(f"output {target} is the input model itself: choose another file name with -o")
    if target.is_dir():
        raise UsageError(f"output {target} is a folder: give a file name, for example -o {target / 'model.onnx'}")
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {target}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise ModelError(f"cannot write {target}: permission denied; choose another place with -o")


def _load_file(path: Path) -> Model:
    if not path.exists():
        raise ModelError(f"no such model file: {path}")
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
    check_content(proto, str(path), folder=path.parent)
    _check(str(path) if _has_external_data(proto) else proto, str(path))
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise ModelError(f"{path} cannot be read as an ONNX graph: {error}") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    nbytes = path.stat().st_size
    external = [t for v in model.graph.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor)]
    if external:
        size = sum(t.nbytes for t in external)
        nbytes += size
        try:
            if size <= runtime.PROTOBUF_LIMIT:  # larger weights stay mapped from their file
                ir.external_data.load_to_model(model)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: cannot read its external data: {first_line(error)}") from error
    return Model(ir_model=model, source=str(path), nbytes=nbytes)


def _check(model: onnx.ModelProto | str, where: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=False)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{where} is refused by the ONNX checker: {first_line(error)}") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{where} cannot be checked: {first_line(error)}") from error


def _check_versions(model: Model) -> None:
    if not MIN_OPSET <= model.opset <= MAX_OPSET:
        raise ModelError(
            f"{model.source} has opset {model.opset}; supported are {MIN_OPSET} to {MAX_OPSET} "
            f"(onnx.version_converter.convert_version changes it)"
        )


def _has_external_data(proto: onnx.ModelProto) -> bool:
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)


def _rename_twins(model: ir.Model) -> None:
    """Number the nodes that have a name in common: onnxruntime does not load them."""
    name_everything(model, also_unnamed=False)


def name_everything(model: ir.Model, *, also_unnamed: bool = True) -> None:
    """Give every node a unique name: its own, else one made of its operator and first output."""
    seen: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not node.name and not also_unnamed:
            continue
        base = node.name or f"{node.op_type}_{node.outputs[0].name}"
        name, suffix = base, 1
        while name in seen:
            suffix += 1
            name = f"{base}_{suffix}"
        seen.add(name)
        node.name = name


def _infer_shapes(model: ir.Model) -> None:
    """Shapes of inner tensors, none of them out of bounds; the outputs stay as their author declared them."""
    declared = [(v.type, v.shape) for v in model.graph.outputs]
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    check_bounds(model)
    for output, (kind, shape) in zip(model.graph.outputs, declared, strict=True):
        output.type, output.shape = kind, shape


def _check_constants(model: ir.Model) -> None:
    """Before constants are computed, where they may be much larger than what they are computed from."""
    if any(node.op_type in GROWING_OPS for node in constant_nodes(model.graph)):
        _infer_shapes(model)


def _digest(model: ir.Model) -> str:
    digest = hashlib.sha256()
    digest.update(repr(sorted(model.opset_imports.items())).encode())
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs):
            digest.update(f"{value.name} {value.type} {value.shape}\n".encode())
        for name in sorted(graph.initializers):
            tensor = graph.initializers[name].const_value
            if tensor is not None:
                digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
                digest.update(_content(tensor))
        for node in graph:
            proto = ir.to_proto(node)
            proto.ClearField("doc_string")
            proto.ClearField("metadata_props")
            digest.update(proto.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _content(tensor: ir.TensorProtocol) -> bytes | memoryview:
    """The numbers of a tensor, not copied; of texts their bytes with their lengths."""
    if isinstance(tensor, ir.StringTensor):
        return repr(list(tensor.string_data())).encode()
    array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    return array.view(np.uint8).data if tensor.size else b""


def _save_with_external_data(model: ir.Model, target: Path) -> int:
    """Write weights one after the other into NAME.data, so that no more than one of them is in memory."""
    data = target.with_name(f"{target.name}.data")
    mapped = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    if data.exists() and (not target.exists() or any(os.path.samefile(tensor.path, data) for tensor in mapped)):
        raise UsageError(f"cannot write {data}: it holds the weights of another model; choose another name with -o")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        partial, partial_data = Path(folder) / target.name, Path(folder) / data.name
        ir.save(model, partial, external_data=data.name)
        for path in (partial_data, partial):
            _flush(path)
        os.replace(partial_data, data)
        os.replace(partial, target)
    return target.stat().st_size + data.stat().st_size


def _flush(path: Path) -> None:
    """Bring what was written to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
