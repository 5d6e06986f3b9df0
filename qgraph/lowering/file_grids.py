"""The grids of a file: what QuantizeLinear and DequantizeLinear say of them, and what they compute of constants.

Tools write scales in shapes and types that onnxruntime does not take: one for each channel before opset 13, in the
shape of the tensor with ones, with an axis that does not fit, negative, 4-bit codes before opset 21. What is meant is
mostly clear: scales lie along the axis that has as many positions, or stretch over the tensor as in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.errors import ModelError
from qgraph.graph.layers import attribute

_WHOLE = ("int8", "uint8", "int16", "uint16", "int32")
_SMALL = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
CODES: dict[str, tuple[int, int]] = {name: (np.iinfo(name).min, np.iinfo(name).max) for name in _WHOLE} | _SMALL
"""The lowest and highest code of each type, by its name in NumPy."""
Arrays = Sequence[NDArray[Any] | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class FileGrid:
    """A grid of the file: value = scale (code - zero_point), with codes from `low` to `high`.

    `axis` and `block` say what shares a scale, as in DequantizeLinear; None and 0 stand for one scale for all.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    low: int
    high: int
    axis: int | None = None
    block: int = 0

    @property
    def ends(self) -> tuple[float, float]:
        """The least and greatest value of a grid with one scale."""
        step, zero = float(self.scale.max()), int(self.zero_point.reshape(-1)[0])
        return (self.low - zero) * step, (self.high - zero) * step


@dataclass(frozen=True, eq=False, kw_only=True)
class FileWeight:
    """A weight of the file in floats, and its grid."""

    values: NDArray[np.float32]
    grid: FileGrid


def grid_of(node: ir.Node, arrays: Arrays) -> FileGrid | None:
    """The grid of a QuantizeLinear or DequantizeLinear with the given inputs; None if one is not known, or unusual."""
    codes, scale, zero = (*arrays, None)[:3]
    if scale is None or (zero is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        return None
    ends = CODES.get(_kind(node, codes, zero))
    if ends is None:
        return None
    if not np.isfinite(scale.astype(np.float32)).all() or (scale.size == 1 and not scale.any()):
        raise ModelError(f"the scale of '{node.name}' is {scale.reshape(-1)[0]}, and steps are positive and finite")
    points = np.zeros((), np.int64) if zero is None else zero.astype(np.int64)
    if (scale < 0).any():  # the same values, with codes in the other order
        points = np.where(scale < 0, sum(ends) - points.reshape(scale.shape if points.size > 1 else ()), points)
    steps, axis, block = np.abs(scale).astype(np.float32), None, 0
    if scale.size > 1:
        spread = None if codes is None else _spread(node, steps, codes.shape)
        along = [] if spread is None else [i for i, n in enumerate(spread.shape) if n > 1]
        axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0)) or 1
        if len(along) == 1 and spread.size == scale.size:  # type: ignore[union-attr]
            steps, axis, block = steps.reshape(-1), along[0], 0
        elif codes is not None and spread is not None and scale.ndim == codes.ndim:
            short = [i for i, (m, n) in enumerate(zip(scale.shape, codes.shape, strict=True)) if m != n]
            if len(short) == 1:
                axis = short[0]
                block = int(attribute(node, "block_size", 0)) or -(-codes.shape[axis] // scale.shape[axis])
    return FileGrid(scale=steps, zero_point=points, low=ends[0], high=ends[1], axis=axis, block=block)


def dequantized(node: ir.Node, arrays: Arrays) -> NDArray[Any] | None:
    """What DequantizeLinear makes of constants, (code - zero point) scale in the type of the scale."""
    codes, scale, zero = (*arrays, None)[:3]
    spread = _parameters(node, codes, scale, zero)
    if codes is None or scale is None or spread is None:
        return None
    steps, points = spread
    whole = codes.astype(np.float32) if _kind(node, codes, None) not in CODES else codes.astype(np.int64) - points
    return np.asarray(whole.astype(np.float32) * steps.astype(np.float32)).astype(scale.dtype)


def quantized(node: ir.Node, arrays: Arrays) -> NDArray[Any] | None:
    """What QuantizeLinear makes of constants: round(x / scale) + zero point within its codes, half to even."""
    real, scale, zero = (*arrays, None)[:3]
    kind, spread = _kind(node, None, zero), _parameters(node, real, scale, zero)
    if real is None or spread is None or kind not in CODES:
        return None
    steps, points = spread
    codes = np.clip(np.rint(real / steps).astype(np.int64) + points, *CODES[kind])
    return codes.astype(ir.DataType[kind.upper()].numpy())


def _kind(node: ir.Node, codes: NDArray[Any] | None, zero: NDArray[Any] | None) -> str:
    """The name of the type of the codes."""
    if zero is not None:
        return zero.dtype.name
    if codes is not None and node.op_type == "DequantizeLinear":
        return codes.dtype.name
    asked = int(attribute(node, "output_dtype", 0))
    return str(ir.DataType(asked)).lower() if asked else "uint8"


def _parameters(
    node: ir.Node, array: NDArray[Any] | None, scale: NDArray[Any] | None, zero: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
    if array is None or scale is None:
        return None
    points = None if zero is None else _spread(node, zero.astype(np.int64), array.shape)
    steps = _spread(node, scale, array.shape)
    if steps is None or (points is None and zero is not None):
        return None
    return steps, np.zeros((), np.int64) if points is None else points


def _spread(node: ir.Node, parameter: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    """A scale or zero point in a shape that stretches over a tensor; None if it fits none of its axes, or several.

    Blocks lie along the axis that has fewer scales than positions, whichever axis the node names.
    """
    axis, block = int(attribute(node, "axis", 1)), int(attribute(node, "block_size", 0))
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim != len(shape) and parameter.size == max(parameter.shape):
        fits = [i for i, n in enumerate(shape) if n == parameter.size]
        if -len(shape) <= axis < len(shape) and axis % len(shape) in fits:
            fits = [axis % len(shape)]
        if len(fits) != 1:
            return None
        return parameter.reshape([-1 if i == fits[0] else 1 for i in range(len(shape))])
    if parameter.ndim != len(shape):
        return None
    for i, (have, wanted) in enumerate(zip(parameter.shape, shape, strict=True)):
        if have not in (1, wanted):
            length = block if block and -(-wanted // block) == have else wanted // have if wanted % have == 0 else 0
            if not length:
                return None
            parameter = np.repeat(parameter, length, i).take(range(wanted), i)
    return parameter
