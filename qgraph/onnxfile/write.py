"""Write a model to a file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from qgraph.errors import ModelError
from qgraph.onnxfile.external import own_data, remove_unless_read, save_with_external_data
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.readable import restore_types
from qgraph.running import sessions as runtime
from qgraph.running.files import check_writable, write_atomically
from qgraph.running.versions import needed_ir_version


def save(model: ir.Model | Model, path: str | os.PathLike[str], *, source: str | None = None) -> int:
    """Write a model to a file, whole or not at all, and return its size in bytes.

    The file is written beside its target, flushed to disk and renamed over it. Weights that do not fit in one protobuf
    go to `NAME.DIGEST.data` beside it; those of a model that is replaced are removed if they were written here.
    `source` is the input model, which is never overwritten.

    Raises:
        UsageError: When `path` is a folder, is the input itself, or its folder does not exist.
        ModelError: When the file cannot be written.

    Example:
        >>> from importlib.resources import files
        >>> import onnx_ir
        >>> import qgraph
        >>> model = onnx_ir.load(files("qgraph") / "demo_assets" / "digits.onnx")
        >>> qgraph.save(model, "copy.onnx") > 100_000
        True
    """
    target = Path(path)
    check_writable(target, source=source)
    model = model.ir_model if isinstance(model, Model) else model
    try:
        before = own_data(target)
        if runtime.fits_one_file(model):
            data = serialised(model)
            write_atomically(target, data)
            size = len(data)
        else:
            size = save_with_external_data(model, target)
        remove_unless_read(before - own_data(target), model)
        return size
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error.strerror or error}") from error


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as onnx's own type, equal to the file that `save` writes.

    Raises:
        ModelError: Its weights do not fit in one protobuf of 2 GB.
    """
    if not runtime.fits_one_file(model):
        raise ModelError("weights of more than 2 GB fit in no ModelProto: save the model to a file instead")
    return onnx.ModelProto.FromString(serialised(model))


def serialised(model: ir.Model) -> bytes:
    """The bytes that `save` writes for a model whose weights fit in one file."""
    proto = restore_types(ir.to_proto(model))
    proto.ir_version = needed_ir_version(model)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
