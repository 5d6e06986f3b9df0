"""Models at the opset that quantized graphs need: raised only as far as necessary, and checked to compute the same."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common as passes

from qgraph.errors import ModelError, UsageError, first_line
from qgraph.onnxfile.axes import pad_in_pools
from qgraph.onnxfile.edit import name_everything
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.noise import TRIED_SIZES, noise
from qgraph.onnxfile.normalise import normalise
from qgraph.running import sessions as runtime
from qgraph.running.wording import option

QUANTIZED_OPSET = 13  # per-channel QuantizeLinear, Min on uint8
_RESIZE_OPSET = 11  # the first whose Resize has a coordinate transformation mode


def raise_opset(model: Model, opset: int | None = None) -> Model:
    """The normalised model at `opset`, or at the nearest one that quantized graphs need; checked to compute the same.

    Raises `ModelError` when the ONNX version converter cannot do it or changes results, `UsageError` for an `opset`
    below the model's or beyond onnxruntime's quantizers.
    """
    latest = runtime.latest_quantized_opset()
    if opset is not None and not model.opset <= opset <= latest:
        raise UsageError(
            f"{option('opset', opset)}: the model has opset {model.opset}; it can be raised up to {latest}, the newest "
            f"in which onnxruntime {runtime.version} runs quantizers"
        )
    target = min(max(model.opset, QUANTIZED_OPSET, opset or 0), latest)
    if target == model.opset:
        return model
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model.ir_model), target))
    except Exception as error:
        raise ModelError(
            f"{model.source} has opset {model.opset}, quantized graphs need {target}, and onnx's version converter "
            f"cannot bring it there: {first_line(error)}; export the model with opset {target}"
        ) from error
    if model.opset < _RESIZE_OPSET <= target:
        _keep_corners(converted)
    _declare_as_before(model.ir_model, converted)
    name_everything(converted)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(converted)
    pad_in_pools(converted)
    _compare_outputs(model, converted, target)
    return replace(model, ir_model=converted)


def _declare_as_before(model: ir.Model, converted: ir.Model) -> None:
    """Restore output sizes that their author left open; onnx's converter gives those names."""
    declared = {value.name: value for value in model.graph.outputs}
    for value in converted.graph.outputs:
        if value.name in declared:
            value.type, value.shape = declared[value.name].type, declared[value.name].shape


def _keep_corners(converted: ir.Model) -> None:
    """Let Resize map coordinates as Upsample and the first Resize did; onnx's converter leaves the new default."""
    for node in converted.graph.all_nodes():
        if node.op_type == "Resize" and node.domain == "":
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "floor"))


def _compare_outputs(model: Model, converted: ir.Model, opset: int) -> None:
    """Run both on the same noise, so that a version conversion that changes results does not pass silently."""
    original, after = runtime.Session(model.ir_model), runtime.Session(converted)
    before = feeds = None
    for size in TRIED_SIZES:
        try:
            feeds = noise(model, size)
            before = original.run_list(feeds)
            break
        except (ModelError, MemoryError, ValueError):
            continue  # a dimension that the model leaves open needs another size
    if before is None or feeds is None:
        warnings.warn(f"{model.source} was raised from opset {model.opset} to {opset} unchecked", stacklevel=2)
        return
    for output, a, b in zip(model.graph.outputs, before, after.run_list(feeds), strict=True):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f":
            same = a.shape == b.shape and np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
            if not same:
                raise ModelError(
                    f"raising {model.source} from opset {model.opset} to {opset} changes output '{output.name}': "
                    f"onnx's version converter is wrong here; export with opset {opset}"
                )


def prepare(model: ModelLike, *, opset: int | None = None, fold_bn: bool = True) -> Model:
    """Load and normalise a model, at the opset that quantized graphs need or a higher one asked for."""
    return raise_opset(normalise(load(model), fold_bn=fold_bn), opset)
