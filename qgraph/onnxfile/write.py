"""Write a model to a file, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir

from qgraph.errors import ModelError, UsageError
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.readable import restore_types
from qgraph.running import sessions as runtime
from qgraph.running.files import check_writable, flush, write_atomically
from qgraph.running.versions import needed_ir_version


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
        data = serialised(model)
        write_atomically(target, data)
        return len(data)
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error.strerror or error}") from error


def serialised(model: ir.Model) -> bytes:
    """What `save` writes, of a model whose weights fit one file."""
    proto = restore_types(ir.to_proto(model))
    proto.ir_version = needed_ir_version(model)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _save_with_external_data(model: ir.Model, target: Path) -> int:
    """Write weights one after the other into NAME.data, so that no more than one of them is in memory."""
    data = target.with_name(f"{target.name}.data")
    mapped = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    if data.exists() and (not target.exists() or any(os.path.samefile(tensor.path, data) for tensor in mapped)):
        raise UsageError(f"cannot write {data}: it holds the weights of another model; choose another name with -o")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        partial, partial_data = Path(folder) / target.name, Path(folder) / data.name
        ir.save(model, partial, external_data=data.name)
        outline = onnx.load(partial, load_external_data=False)
        outline.ir_version = needed_ir_version(model)
        partial.write_bytes(restore_types(outline).SerializeToString(deterministic=True))
        for path in (partial_data, partial):
            flush(path)
        os.replace(partial_data, data)
        os.replace(partial, target)
    return target.stat().st_size + data.stat().st_size
