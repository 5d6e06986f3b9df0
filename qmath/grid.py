"""The uniform grid, and the three maps between real numbers and its codes.

Code q stands for the real number (q - zero_point) scale + offset. A grid is symmetric (zero_point and offset 0), affine
with an integer zero point (ONNX QuantizeLinear: zero is always representable), or affine with a real offset (LSQ+).
Parameters are scalars, one per slice along `axis`, or one per `group` values along it (`qmath.Granularity`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_bit_count, as_bits, as_data, as_parameter, check_choice, reject_nan
from qmath.granularity import Granularity
from qmath.kernels.rows import output_like, run_rows, slices_shape

Rounding = Literal["half_even", "half_up"]
"""Where ties go: to the even neighbour (ONNX QuantizeLinear), or upwards (the papers' floor(v + 0.5))."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid(ByContent):
    """Codes qmin..qmax of `bits` bits; code q stands for (q - zero_point) scale + offset.

    `scale` (> 0), `zero_point` (whole, in qmin..qmax) and `offset` (units of x) are scalars, or 1-D arrays along
    `axis`, with an entry per slice, or per group of `group` values (in the order of `qmath.Granularity`); all are
    stored as read-only float64. So may `bits` be (whole numbers): the width of every slice. `signed` grids hold
    -2^(bits-1)..2^(bits-1)-1, or from -2^(bits-1)+1 when `narrow`; unsigned ones 0..2^bits-1. Raises ValueError or
    TypeError for parameters that make no grid.
    """

    bits: int | NDArray[np.int64]
    scale: NDArray[np.float64]
    _: KW_ONLY
    zero_point: NDArray[np.float64] = 0.0  # type: ignore[assignment]
    offset: NDArray[np.float64] = 0.0  # type: ignore[assignment]
    signed: bool = True
    narrow: bool = False
    axis: int | None = None
    group: int | None = None
    _typed: dict[np.dtype[Any], NDArray[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        bits = as_bits(self.bits)
        set_field(self, "bits", frozen(bits, np.int64) if bits.ndim else int(bits))
        _check_code_range(int(bits.min()), self.signed, self.narrow)
        given = {
            "scale": as_parameter(self.scale, "scale", positive=True),
            "zero_point": as_parameter(self.zero_point, "zero_point"),
            "offset": as_parameter(self.offset, "offset"),
        }
        shapes = {name: value.shape for name, value in given.items()} | ({"bits": bits.shape} if bits.ndim else {})
        shape = self._common_shape(shapes)
        for name, value in given.items():
            set_field(self, name, frozen(np.broadcast_to(value, shape)))
        if self.axis is not None:
            set_field(self, "axis", int(self.axis))
        Granularity(axis=self.axis, group=self.group)
        zero, (lowest, highest) = self.zero_point, self.limits
        if ((zero != np.rint(zero)) | (zero < lowest) | (zero > highest)).any():
            raise ValueError(
                f"zero_point: expected whole numbers in {self.qmin}..{self.qmax} ({self.bits} bits), "
                f"found {zero}: a real shift of the grid is its offset"
            )

    def _common_shape(self, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        try:
            shape = np.broadcast_shapes(*shapes.values())
        except ValueError:
            raise ValueError(f"grid parameters: expected equal lengths, found shapes {shapes}") from None
        if self.axis is None and shape != ():
            raise ValueError(f"scale: expected scalars without axis, found shapes {shapes}: pass axis=")
        if self.axis is not None and len(shape) != 1:
            raise ValueError(f"scale: expected 1-D parameters along axis {self.axis}, found shapes {shapes}")
        return shape

    @classmethod
    def symmetric(
        cls,
        clip: ArrayLike,
        *,
        bits: int,
        signed: bool = True,
        narrow: bool = True,
        axis: int | None = None,
    ) -> Grid:
        """The grid with zero_point 0 whose highest level is `clip` (> 0, units of x): scale = clip / qmax.

        A signed narrow grid spans -clip..clip; without `narrow` it has one step more below. An unsigned grid (data that
        are not negative, as after a ReLU) spans 0..clip, and `narrow` does not apply to it.
        """
        bits = as_bit_count(bits, low=2 if signed else 1)
        qmax = _code_range(bits, signed, narrow)[1]
        scale = as_parameter(clip, "clip", positive=True) / qmax
        return cls(bits, scale, signed=signed, narrow=narrow and signed, axis=axis)

    @classmethod
    def affine(
        cls, low: ArrayLike, high: ArrayLike, *, bits: int, signed: bool = False, axis: int | None = None
    ) -> Grid:
        """The grid over [low, high], widened to hold 0, with zero moved onto a level as ONNX tools do.

        scale = (high - low) / (2^bits - 1), zero_point = clamp(rint(qmin - low / scale)). Data that are all zero get
        scale 1. Raises ValueError when low > high.
        """
        bits = as_bit_count(bits)
        below, above = _ordered(low, high)
        below, above = np.minimum(below, 0.0), np.maximum(above, 0.0)
        qmin, qmax = _code_range(bits, signed, narrow=False)
        scale = _step(below, above, qmax - qmin)
        zero_point = np.clip(np.rint(qmin - below / scale), qmin, qmax)
        return cls(bits, scale, zero_point=zero_point, signed=signed, axis=axis)

    @classmethod
    def with_offset(
        cls, low: ArrayLike, high: ArrayLike, *, bits: int, signed: bool = False, axis: int | None = None
    ) -> Grid:
        """The grid with real offset whose ends are exactly `low` and `high` (LSQ+, Eq. 6 and 7); zero may fall between.

        scale = (high - low) / (qmax - qmin), offset = low - qmin scale. Equal ends get scale 1. Raises ValueError when
        low > high.
        """
        bits = as_bit_count(bits)
        below, above = _ordered(low, high)
        qmin, qmax = _code_range(bits, signed, narrow=False)
        scale = _step(below, above, qmax - qmin)
        return cls(bits, scale, offset=below - qmin * scale, signed=signed, axis=axis)

    @property
    def granularity(self) -> Granularity:
        """What shares a parameter."""
        return Granularity(axis=self.axis, group=self.group)

    @property
    def limits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lowest and highest code: scalars, or one per slice where the widths differ."""
        top = 2 ** (np.asarray(self.bits, np.int64) - self.signed)
        return (int(self.narrow) - top if self.signed else 0 * top), top - 1

    @property
    def qmin(self) -> int:
        """Lowest code, of any slice."""
        return int(self.limits[0].min())

    @property
    def qmax(self) -> int:
        """Highest code, of any slice."""
        return int(self.limits[1].max())

    @property
    def levels(self) -> int:
        """Number of codes, of the widest slice."""
        return self.qmax - self.qmin + 1

    @property
    def low(self) -> NDArray[np.float64]:
        """Lowest real number of the grid, in the units of x (per slice along `axis`)."""
        return (self.limits[0] - self.zero_point) * self.scale + self.offset

    @property
    def high(self) -> NDArray[np.float64]:
        """Highest real number of the grid, in the units of x (per slice along `axis`)."""
        return (self.limits[1] - self.zero_point) * self.scale + self.offset

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Smallest integer type that holds every code."""
        name = f"{'int' if self.signed else 'uint'}{8 if np.max(self.bits) <= 8 else 16}"
        return np.dtype(name)


def quantize(x: ArrayLike, grid: Grid, *, rounding: Rounding = "half_even") -> NDArray[Any]:
    """Codes q = clamp(round((x - offset) / scale) + zero_point, qmin, qmax) (ONNX QuantizeLinear when offset is 0).

    `x` is float32 or float64 (others become one of them) of any shape that has the grid's axis; the arithmetic is done
    in its type. Infinities go to the end codes. Returns the smallest integer type that holds the codes.
    Raises ValueError for NaN, an empty array, or an axis of another length.
    """
    data = as_data(x)
    if np.isnan(data.min()):
        reject_nan(data, "x")
    out = np.empty(data.shape, grid.code_dtype)
    kernels = _kernels()
    _run(kernels.codes_by_row, kernels.codes_by_column, data, out, grid, _is_half_up(rounding))
    return out


def fake_quantize(
    x: ArrayLike, grid: Grid, *, rounding: Rounding = "half_even", out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """`dequantize(quantize(x))` in one pass: every value replaced by the real number its code stands for.

    Computed in the floating type of `x` (float32 results equal `dequantize(quantize(x))` to the last bit); NaN stays
    NaN. `out` may be given (C-contiguous, of the shape and type of the result; `x` itself is allowed) and is returned.
    Raises ValueError for an empty array, an axis of another length, or an `out` that does not fit.
    """
    data = as_data(x)
    out = output_like(data, out)
    kernels = _kernels()
    _run(kernels.values_by_row, kernels.values_by_column, data, out, grid, _is_half_up(rounding))
    return out


def dequantize(q: ArrayLike, grid: Grid) -> NDArray[np.float32]:
    """Real numbers (q - zero_point) scale + offset of integer codes, in float32 (ONNX DequantizeLinear).

    Raises TypeError for codes that are not of an integer type, ValueError for codes outside the grid.
    """
    codes = np.asarray(q)
    if codes.dtype.kind not in "iu":
        raise TypeError(f"q: expected integer codes, found dtype {codes.dtype}")
    if codes.size == 0:
        raise ValueError(f"q: expected at least one code, found an empty array of shape {codes.shape}")
    lowest, highest = int(codes.min()), int(codes.max())
    if lowest < grid.qmin or highest > grid.qmax:
        raise ValueError(f"q: expected codes in {grid.qmin}..{grid.qmax}, found {lowest}..{highest}")
    parameters = _parameters(grid, np.dtype(np.float32))
    _check_fit(codes.shape, grid)
    scale, _, offset, _, _, zero_point = (grid.granularity.lay(each, codes.shape) for each in parameters)
    values = codes.astype(np.float32)
    if zero_point.any():
        values -= zero_point
    values *= scale
    if offset.any():
        values += offset
    return values


def _run(
    by_row: Callable[..., None],
    by_column: Callable[..., None],
    data: NDArray[Any],
    out: NDArray[Any],
    grid: Grid,
    half_up: bool,
) -> None:
    """Fill `out` from `data` by one of the two kernels; groups are brought into rows first."""
    parameters, channels = _parameters(grid, data.dtype), grid.scale.size
    if grid.group is None:
        run_rows(by_row, by_column, data, out, grid.axis, parameters, half_up, channels=channels)
        return
    _check_fit(data.shape, grid)
    rows = np.ascontiguousarray(grid.granularity.rows(data))
    found = np.empty(rows.shape, out.dtype)
    run_rows(by_row, by_column, rows, found, 0, parameters, half_up, channels=channels)
    out[...] = grid.granularity.from_rows(found, data.shape)


def _check_fit(shape: tuple[int, ...], grid: Grid) -> None:
    if grid.group is None:
        slices_shape(shape, grid.axis, grid.scale.size)
    elif grid.granularity.count(shape) != grid.scale.size:
        raise ValueError(
            f"x: expected {grid.scale.size} groups of {grid.group} along axis {grid.axis}, one per parameter, found "
            f"shape {shape}"
        )


def _parameters(grid: Grid, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The (6, channels) array of `qmath.kernels.grid` in the type of the data, made once per grid and type."""
    if dtype not in grid._typed:
        with np.errstate(over="ignore"):
            scale = grid.scale.reshape(-1).astype(dtype)
            offset = grid.offset.reshape(-1).astype(dtype)
            zero_point = grid.zero_point.reshape(-1).astype(dtype)
            lowest, highest = (limit.astype(dtype) for limit in grid.limits)
            low, high = (lowest - zero_point) * scale, (highest - zero_point) * scale
        usable = (scale >= np.finfo(dtype).tiny) & np.isfinite(low) & np.isfinite(high) & np.isfinite(offset)
        if not usable.all():
            raise ValueError(f"grid: scale {grid.scale} with offset {grid.offset} leaves the range of {dtype}")
        grid._typed[dtype] = np.stack([scale, 1 / scale, offset, low, high, zero_point])
    return grid._typed[dtype]


def _is_half_up(rounding: str) -> bool:
    if rounding == "half_even":
        return False
    check_choice(rounding, "rounding", get_args(Rounding))
    return True


@functools.cache
def _kernels() -> Any:
    """The compiled loops, imported (and Numba with them) when first needed."""
    from qmath.kernels import grid as grid_kernels

    return grid_kernels


def _code_range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    if not signed:
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1


def _check_code_range(bits: int, signed: bool, narrow: bool) -> None:
    if narrow and not signed:
        raise ValueError("narrow: only a signed grid has a most negative code to drop, found signed=False")
    if narrow and bits < 2:
        raise ValueError("bits: a narrow signed grid needs at least 2 bits: with 1 its only level is zero")


def _ordered(low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    below, above = as_parameter(low, "low"), as_parameter(high, "high")
    if (below > above).any():
        raise ValueError(f"low, high: expected low <= high, found {below} and {above}")
    return below, above


def _step(low: NDArray[np.float64], high: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """(high - low) / steps, divided first so that no finite range overflows; 1 where the range is empty."""
    step = high / steps - low / steps
    return np.where(step > 0, step, 1.0)
