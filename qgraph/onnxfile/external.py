"""Weights in a file of their own beside the model, named by its content.

The model holds the name of the file of its weights. Since different content has a different name, a reader finds the
weights that belong to the model, even while it is rewritten or after that was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import onnx
import onnx_ir as ir

from qgraph.onnxfile.content import graphs
from qgraph.onnxfile.readable import restore_types
from qgraph.running.files import flush
from qgraph.running.versions import needed_ir_version

_DIGITS = 12  # of the digest


def save_with_external_data(model: ir.Model, target: Path) -> int:
    """Write the weights one after the other, so that only one of them is in memory; return the size in bytes.

    The weights are put in place first, in NAME.DIGEST.data, then the model.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        partial, weights = Path(folder) / target.name, Path(folder) / "weights"
        ir.save(model, partial, external_data=weights.name)
        outline = onnx.load(partial, load_external_data=False)
        outline.ir_version = needed_ir_version(model)
        data = target.with_name(f"{target.name}.{_digest(weights)}.data")
        for entry in _locations(outline):
            entry.value = data.name
        partial.write_bytes(restore_types(outline).SerializeToString(deterministic=True))
        for path in (weights, partial):
            flush(path)
        os.replace(weights, data)
        os.replace(partial, target)
    return target.stat().st_size + data.stat().st_size


def own_data(target: Path) -> frozenset[Path]:
    """The files with the weights of the model in `target`, if `save_with_external_data` named them."""
    name = re.compile(re.escape(target.name) + rf"\.[0-9a-f]{{{_DIGITS}}}\.data")
    if not target.exists() or not any(name.fullmatch(path.name) for path in target.parent.iterdir()):
        return frozenset()
    try:
        outline = onnx.load(target, load_external_data=False, format="protobuf")
    except Exception:  # whatever lay there, it is no model that names weights
        return frozenset()
    return frozenset(target.with_name(e.value) for e in _locations(outline) if name.fullmatch(e.value))


def remove_unless_read(paths: frozenset[Path], model: ir.Model) -> None:
    """Remove files of weights, except those that the values of `model` are still mapped from."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    read = {os.path.realpath(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    for path in paths:
        if os.path.realpath(path) not in read:
            with suppress(OSError):  # in use elsewhere, where systems mind
                path.unlink()


def _locations(model: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    """The entries that name files."""
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            yield from (entry for entry in tensor.external_data if entry.key == "location")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]
