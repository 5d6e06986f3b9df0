"""The uniform grid, and the three maps between real numbers and its codes.

Code q represents the real number (q - zero_point) scale + offset. A grid is symmetric (zero_point and offset 0), affine
with an integer zero point (ONNX QuantizeLinear: zero is exactly representable), or affine with a real offset (LSQ+).
Parameters are scalars, one per slice along `axis`, or one per `group` values along it (`qmath.Granularity`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_bits, as_data, as_parameter, check_choice, reject_nan
from qmath.granularity import Granularity
from qmath.kernels import plain
from qmath.kernels.rows import output_like, run_rows, slices_shape

Rounding = Literal["half_even", "half_up"]
"""Rounding of ties: to the even neighbour (ONNX QuantizeLinear), or upwards (the papers' floor(v + 0.5))."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Grid(ByContent):
    """A uniform grid of codes qmin..qmax; code q represents (q - zero_point) scale + offset.

    `scale` (> 0), `zero_point` (an integer in qmin..qmax) and `offset` (units of x) are scalars, or 1-D arrays along
    `axis` with one entry per slice, or per group of `group` values (in the order of `qmath.Granularity`). They are
    stored as read-only float64. `bits` (1..16) may be such an array too, for slices of different widths. A `signed`
    grid has codes -2^(bits-1)..2^(bits-1)-1, or from -2^(bits-1)+1 when `narrow`; an unsigned one 0..2^bits-1.

    Raises:
        TypeError: When a parameter is not numeric.
        ValueError: For a scale that is not positive, a zero point that is not a code, or shapes that do not fit.

    Example:
        >>> import qmath
        >>> grid = qmath.Grid(4, 0.5, zero_point=8, signed=False)
        >>> grid
        Grid(4 bits, -4..3.5, scale=0.5, zero_point=8, unsigned)
        >>> grid.qmin, grid.qmax, float(grid.low), float(grid.high)
        (0, 15, -4.0, 3.5)
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

    def __repr__(self) -> str:
        """The widths, the ends and the parameters, with lists of them as ranges."""
        said = [f"{_spread(self.bits)} bits, {_least(self.low):.4g}..{_most(self.high):.4g}"]
        said += [f"scale={_spread(self.scale)}"]
        said += [f"{name}={_spread(v)}" for name in ("zero_point", "offset") if (v := getattr(self, name)).any()]
        said += ["" if self.signed else "unsigned"]
        shared = "channels" if self.group is None else f"groups of {self.group}"
        said += [f"{self.scale.size} {shared} along axis {self.axis}" if self.axis is not None else ""]
        return f"Grid({', '.join(filter(None, said))})"

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
        bits: ArrayLike,
        signed: bool = True,
        narrow: bool = True,
        axis: int | None = None,
    ) -> Grid:
        """Return the grid with zero_point 0 whose highest level is `clip`: scale = clip / qmax.

        `clip` (> 0, in the units of x) is a scalar, or 1-D along `axis`. A signed narrow grid spans -clip..clip;
        without `narrow` it has one more level at the lower end. An unsigned grid, for non-negative data such as the
        output of a ReLU, spans 0..clip and ignores `narrow`. `bits` may differ along `axis`.

        Raises:
            ValueError: For a clip that is not positive and finite, or bits outside 1..16 (2..16 when signed).

        Example:
            >>> import qmath
            >>> grid = qmath.Grid.symmetric(6.0, bits=3)
            >>> grid.levels, float(grid.scale), float(grid.low)
            (7, 2.0, -6.0)
        """
        widths = as_bits(bits, low=2 if signed else 1)
        scale = as_parameter(clip, "clip", positive=True) / _code_range(widths, signed, narrow)[1]
        return cls(widths, scale, signed=signed, narrow=narrow and signed, axis=axis)

    @classmethod
    def affine(
        cls,
        low: ArrayLike,
        high: ArrayLike,
        *,
        bits: ArrayLike,
        signed: bool = False,
        axis: int | None = None,
        dtype: DTypeLike = np.float64,
    ) -> Grid:
        """Return the grid over [low, high], widened to contain 0 and with zero exactly on a level, as in ONNX.

        scale = (high - low) / (2^bits - 1), zero_point = clamp(rint(qmin - low / scale)). `low` and `high` are in the
        units of x and broadcast: scalars, or 1-D along `axis`; so does `bits`. All-zero data get scale 1. The scale is
        rounded to `dtype` before the zero point is computed from it.

        Raises:
            ValueError: For low > high, ends that are not finite, or bits outside 1..16.

        Example:
            >>> import qmath
            >>> grid = qmath.Grid.affine(-1.0, 2.0, bits=2)
            >>> float(grid.scale), int(grid.zero_point)
            (1.0, 1)
        """
        widths = as_bits(bits)
        below, above = _ordered(low, high)
        below, above = np.minimum(below, 0.0), np.maximum(above, 0.0)
        qmin, qmax = _code_range(widths, signed, narrow=False)
        scale = _step(below, above, qmax - qmin).astype(dtype).astype(np.float64)
        zero_point = np.clip(np.rint(qmin - below / scale), qmin, qmax)
        return cls(widths, scale, zero_point=zero_point, signed=signed, axis=axis)

    @classmethod
    def with_offset(
        cls, low: ArrayLike, high: ArrayLike, *, bits: ArrayLike, signed: bool = False, axis: int | None = None
    ) -> Grid:
        """Return the grid whose ends are exactly `low` and `high`, by means of a real offset (LSQ+, Eq. 6 and 7).

        scale = (high - low) / (qmax - qmin), offset = low - qmin scale. Zero may fall between two levels. `low` and
        `high` are in the units of x and broadcast: scalars, or 1-D along `axis`; so does `bits`. Equal ends
        get scale 1.

        Raises:
            ValueError: For low > high, ends that are not finite, or bits outside 1..16.

        Example:
            >>> import qmath
            >>> grid = qmath.Grid.with_offset(0.5, 3.5, bits=2)
            >>> float(grid.scale), float(grid.offset), float(grid.high)
            (1.0, 0.5, 3.5)
        """
        widths = as_bits(bits)
        below, above = _ordered(low, high)
        qmin, qmax = _code_range(widths, signed, narrow=False)
        scale = _step(below, above, qmax - qmin)
        return cls(widths, scale, offset=below - qmin * scale, signed=signed, axis=axis)

    @property
    def granularity(self) -> Granularity:
        """Which values share parameters: the whole tensor, a slice or a group."""
        return Granularity(axis=self.axis, group=self.group)

    @property
    def limits(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Lowest and highest code: scalars, or one per slice where the widths differ."""
        return _code_range(np.asarray(self.bits, np.int64), self.signed, self.narrow)

    @property
    def qmin(self) -> int:
        """Lowest code of any slice."""
        return int(self.limits[0].min())

    @property
    def qmax(self) -> int:
        """Highest code of any slice."""
        return int(self.limits[1].max())

    @property
    def levels(self) -> int:
        """Number of codes of the widest slice."""
        return self.qmax - self.qmin + 1

    @property
    def low(self) -> NDArray[np.float64]:
        """Lowest representable number, in the units of x (one per slice along `axis`)."""
        return (self.limits[0] - self.zero_point) * self.scale + self.offset

    @property
    def high(self) -> NDArray[np.float64]:
        """Highest representable number, in the units of x (one per slice along `axis`)."""
        return (self.limits[1] - self.zero_point) * self.scale + self.offset

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Smallest integer type that holds every code."""
        name = f"{'int' if self.signed else 'uint'}{8 if np.max(self.bits) <= 8 else 16}"
        return np.dtype(name)


class HasGrid(Protocol):
    """A result that says which grid it is about, such as `qmath.ClipRange`."""

    @property
    def grid(self) -> Grid: ...


def as_grid(grid: Grid | HasGrid) -> Grid:
    """The grid that a caller means: itself, or that of a result; TypeError for anything else."""
    if isinstance(grid, Grid):
        return grid
    inner = getattr(grid, "grid", None)
    if isinstance(inner, Grid):
        return inner
    kind = "None" if grid is None else type(grid).__name__
    raise TypeError(f"grid: expected a qmath.Grid, or a result that has one such as clip_range's, found {kind}")


def quantize(x: ArrayLike, grid: Grid | HasGrid, *, rounding: Rounding = "half_even") -> NDArray[Any]:
    """Quantize `x`: q = clamp(round((x - offset) / scale) + zero_point, qmin, qmax).

    With offset 0 this is ONNX's QuantizeLinear. `x` is float32 or float64 (other types are converted to one of the
    two), of any shape that has the grid's axis, and the arithmetic is done in its type. Infinities saturate. `rounding`
    is "half_even" (ONNX) or "half_up" (floor(v + 0.5), as in the papers). `grid` may also be a result that has one, as
    `clip_range` returns. Returns codes of the shape of `x` in the smallest integer type that holds them.

    Raises:
        TypeError: When `x` does not hold real numbers.
        ValueError: For NaN, an empty array, or an axis of another length than the grid's.

    Example:
        >>> import qmath
        >>> grid = qmath.Grid.affine(-1.0, 2.0, bits=2)
        >>> qmath.quantize([-0.9, 0.2, 1.7, 5.0], grid).tolist()
        [0, 1, 3, 3]
    """
    data, grid = as_data(x), as_grid(grid)
    if np.isnan(data.min()):
        reject_nan(data, "x")
    out = np.empty(data.shape, grid.code_dtype)
    kernels = _kernels(data.size)
    _run(kernels.codes_by_row, kernels.codes_by_column, data, out, grid, _is_half_up(rounding))
    return out


def fake_quantize(
    x: ArrayLike, grid: Grid | HasGrid, *, rounding: Rounding = "half_even", out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Replace every value by the number that its code represents: `dequantize(quantize(x))` in one pass.

    Computed in the floating type of `x`; float32 results equal `dequantize(quantize(x))` to the last bit. NaN stays
    NaN. The result has the shape of `x`. `out` may be given and is then filled and returned: a C-contiguous array of
    that shape and type, possibly `x` itself. `grid` may also be a result that has one, as `clip_range` returns.

    Raises:
        TypeError: When `x` does not hold real numbers.
        ValueError: For an empty array, an axis of another length than the grid's, or an `out` that does not fit.

    Example:
        >>> import qmath
        >>> grid = qmath.Grid.symmetric(1.5, bits=3)
        >>> qmath.fake_quantize([-2.0, 0.3, 0.9], grid).tolist()
        [-1.5, 0.5, 1.0]
    """
    data, grid = as_data(x), as_grid(grid)
    out = output_like(data, out)
    kernels = _kernels(data.size)
    _run(kernels.values_by_row, kernels.values_by_column, data, out, grid, _is_half_up(rounding))
    return out


def dequantize(q: ArrayLike, grid: Grid | HasGrid) -> NDArray[np.float32]:
    """Return the real numbers (q - zero_point) scale + offset of integer codes, in float32.

    With offset 0 this is ONNX's DequantizeLinear. `q` has any shape that has the grid's axis, and so has the result.

    Raises:
        TypeError: For codes that are not of an integer type.
        ValueError: For codes outside the grid, an empty array, or an axis of another length than the grid's.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> grid = qmath.Grid([4, 4], [0.5, 0.25], axis=0)
        >>> qmath.dequantize(np.array([[-2, 3], [-2, 3]]), grid).tolist()
        [[-1.0, 1.5], [-0.5, 0.75]]
    """
    codes, grid = np.asarray(q), as_grid(grid)
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


def _spread(values: ArrayLike) -> str:
    """One number, or the least and the greatest of several."""
    low, high = _least(values), _most(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"


def _least(values: ArrayLike) -> float:
    return float(np.min(values))


def _most(values: ArrayLike) -> float:
    return float(np.max(values))


def _run(
    by_row: Callable[..., None],
    by_column: Callable[..., None],
    data: NDArray[Any],
    out: NDArray[Any],
    grid: Grid,
    half_up: bool,
) -> None:
    """Fill `out` from `data` with one of the two kernels; groups are gathered into rows first."""
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
    """The (6, channels) array of `qmath.kernels.grid` in the type of the data, computed once per grid and type."""
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


def _kernels(values: int) -> Any:
    """The loops for so many values: plain ones while there is little work, then compiled ones."""
    if not plain.pays_to_compile(values):
        return plain
    from qmath.kernels import grid as grid_kernels

    return grid_kernels


def _code_range(bits: NDArray[np.int64], signed: bool, narrow: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    top = 2 ** (bits - signed)
    return (narrow - top if signed else 0 * top), top - 1


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


def _step(low: NDArray[np.float64], high: NDArray[np.float64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """(high - low) / steps, halved before subtracting so that no finite range overflows; 1 for an empty range."""
    step = (high / 2 - low / 2) / (steps / 2)
    return np.where(step > 0, step, 1.0)
