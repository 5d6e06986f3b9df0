"""A rounding scheme as a staircase: all real numbers between two edges have the same code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent, frozen
from qmath._validation import as_bit_count, as_data, as_parameter, reject_nan
from qmath.kernels.rows import output_like, run_rows

_COMPARED = 32  # staircases of up to this many edges are compared with all of them; longer ones are searched
_GROUP = 8  # edges compared in one pass over a block
_KEPT = 256  # scales for which a table keeps its parameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundingTable(ByContent):
    """Rounding by thresholds: code `codes[i]` for edges[i-1] <= x / scale < edges[i].

    The outermost edges are -inf and inf. `edges` ascend, in steps of the grid, one fewer than `codes`, which lie in
    qmin..qmax: -(2^(bits-1)-1)..2^(bits-1)-1 when signed, else 0..2^bits-1. Codes may fall as x grows: Q-Rater's Eq. 5
    is not monotone where its shift turns from up to down between neighbours (see `monotone`). Zero keeps code 0: where
    all positive numbers get code 1, the edge between the two is the smallest positive number.

    Raises:
        ValueError: For edges that do not ascend, codes outside the range, or lengths that do not fit.

    Example:
        >>> import qmath
        >>> table = qmath.RoundingTable(bits=2, signed=False, edges=[0.25, 1.5, 2.75], codes=[0, 1, 2, 3])
        >>> table.quantize([0.1, 0.3, 1.4, 9.0], 1.0).tolist()
        [0, 1, 1, 3]
    """

    bits: int
    signed: bool
    edges: NDArray[np.float64]
    codes: NDArray[np.int64]
    _prepared: dict[tuple[Any, ...], tuple[Any, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", as_bit_count(self.bits, low=2 if self.signed else 1))
        edges = as_parameter(self.edges, "edges", allow_empty=True)
        codes = as_parameter(self.codes, "codes").astype(np.int64)
        if edges.ndim != 1 or codes.shape != (edges.size + 1,) or not (np.diff(edges) > 0).all():
            raise ValueError(
                f"edges: expected ascending numbers, one fewer than codes, found shapes {edges.shape} and {codes.shape}"
            )
        if codes.min() < self.qmin or codes.max() > self.qmax:
            raise ValueError(f"codes: expected {self.qmin}..{self.qmax}, found {codes.min()}..{codes.max()}")
        object.__setattr__(self, "edges", frozen(edges))
        object.__setattr__(self, "codes", frozen(codes, np.int64))

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return -self.qmax if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return magnitudes(self.bits, self.signed) - 1

    @property
    def monotone(self) -> bool:
        """Whether a larger x never gets a smaller code."""
        return bool((np.diff(self.codes) >= 0).all())

    def thresholds(self, scale: ArrayLike, *, dtype: type[np.floating[Any]] = np.float64) -> NDArray[Any]:
        """Return the edges in the units of x, edges * scale, for data of type `dtype`; shape (*scale.shape, edges).

        They are rounded up to that type, so that x >= threshold holds for its numbers exactly when it does for the
        exact product.

        Raises:
            ValueError: For a scale that is not positive and finite.

        Example:
            >>> import qmath
            >>> table = qmath.RoundingTable(bits=1, signed=False, edges=[0.5], codes=[0, 1])
            >>> table.thresholds([1.0, 4.0]).tolist()
            [[0.5], [2.0]]
        """
        steps = as_parameter(scale, "scale", positive=True)[..., np.newaxis]
        exact = self.edges * steps
        smallest = np.finfo(np.float64).smallest_subnormal
        exact = np.where(self.edges > 0, np.maximum(exact, smallest), exact)
        with np.errstate(over="ignore", under="ignore"):
            rounded = exact.astype(dtype)
        return np.where(rounded < exact, np.nextafter(rounded, dtype(np.inf)), rounded).astype(dtype)

    def quantize(self, x: ArrayLike, scale: ArrayLike, *, axis: int | None = None) -> NDArray[Any]:
        """Return the codes of `x` for the step `scale` of the grid, in the smallest integer type that holds them.

        `scale` (> 0, in the units of x) is a scalar, or 1-D along `axis`.

        Raises:
            TypeError: When `x` does not hold real numbers.
            ValueError: For NaN, an empty array, or a scale or axis that does not fit `x`.

        Example:
            >>> import qmath
            >>> qmath.rounding_table(0.0, bits=3).quantize([-0.4, 0.6, 7.0], 0.5).tolist()
            [-1, 1, 3]
        """
        data = as_data(x)
        if np.isnan(data.min()):
            reject_nan(data, "x")
        codes = np.empty_like(data, order="C")
        self._fill(data, codes, scale, axis, real=False)
        return codes.astype(f"{'int' if self.signed else 'uint'}{8 if self.bits <= 8 else 16}")

    def fake_quantize(
        self, x: ArrayLike, scale: ArrayLike, *, axis: int | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Return code * scale in the floating type of `x`: `quantize` and back in one pass; NaN stays NaN.

        `scale` as in `quantize`, `out` as in `qmath.fake_quantize`.

        Raises:
            TypeError: When `x` does not hold real numbers.
            ValueError: For an empty array, or a scale, axis or `out` that does not fit `x`.

        Example:
            >>> import qmath
            >>> qmath.rounding_table(0.0, bits=3).fake_quantize([-0.4, 0.6, 7.0], 0.5).tolist()
            [-0.5, 0.5, 1.5]
        """
        data = as_data(x)
        out = output_like(data, out)
        self._fill(data, out, scale, axis, real=True)
        return out

    def _fill(self, data: NDArray[Any], out: NDArray[Any], scale: ArrayLike, axis: int | None, *, real: bool) -> None:
        """Set `out` to the codes or, if `real`, to the numbers that they represent."""
        simple = axis is None and type(scale) is float
        steps = None if simple else _steps(scale, axis)
        key = (scale if steps is None else steps.tobytes(), data.dtype, real)
        if key not in self._prepared:
            if len(self._prepared) >= _KEPT:
                self._prepared.clear()
            self._prepared[key] = self._prepare(_steps(scale, axis), data.dtype, real)
        kernel, *parameters = self._prepared[key]
        run_rows(kernel, None, data, out, axis, *parameters, channels=len(parameters[0]))

    def _prepare(self, steps: NDArray[np.float64], dtype: np.dtype[Any], real: bool) -> tuple[Any, ...]:
        """The kernel for these scales and this type of data, and its parameters."""
        from qmath.kernels import staircase as staircase_kernels
        from qmath.kernels import staircase_cells

        edges = self.thresholds(steps, dtype=dtype.type)
        unit = (steps if real else np.ones_like(steps)).astype(dtype)
        if dtype == np.float32 and staircase_cells.in_one_register():
            cells = staircase_cells.cells_of(edges, self.codes.astype(dtype) * unit[:, np.newaxis])
            if cells is not None:
                return staircase_cells.fill_by_row, cells
        count = self.edges.size
        padding = -count % _GROUP if count else _GROUP  # edges that no value reaches
        padded = np.pad(edges, ((0, 0), (0, padding)), constant_values=np.inf)
        codes = np.pad(self.codes.astype(dtype), (0, padding), mode="edge")
        if self.edges.size <= _COMPARED:
            return staircase_kernels.compare_by_row, padded, np.append(codes[:1], np.diff(codes)), unit
        return staircase_kernels.search_by_row, padded, codes, unit


def magnitudes(bits: int, signed: bool) -> int:
    """Number of magnitudes of the codes, zero included: 2^(bits-1) for a signed narrow grid, else 2^bits."""
    return 2 ** (bits - 1) if signed else 2**bits


def _steps(scale: ArrayLike, axis: int | None) -> NDArray[np.float64]:
    """`scale` as a checked 1-D array."""
    steps = as_parameter(scale, "scale", positive=True)
    if steps.ndim != (0 if axis is None else 1):
        expected = "a scalar without axis" if axis is None else f"a 1-D array along axis {axis}"
        raise ValueError(f"scale: expected {expected}, found shape {steps.shape}")
    return steps.reshape(-1)
