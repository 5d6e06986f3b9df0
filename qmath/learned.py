"""LSQ and LSQ+: the quantizer with learned scale and offset, its straight-through gradients and its initial values.

With v = (x - offset) / scale and code range n..p,

    x_hat = round(clamp(v, n, p)) scale + offset                           LSQ+, Eq. 1 and 2

The gradients (Eq. 3, 4) take the derivative of round as 1:

                          n < v < p          otherwise
    d x_hat / d x         1                  0
    d x_hat / d scale     round(v) - v       n or p
    d x_hat / d offset    0                  1

Sources: LSQ+ (Bhalgat et al. 2020); LSQ (Esser et al. 2019) for the scale of the gradient and the first initialisation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis, as_bit_count, as_data, as_parameter, check_finite
from qmath.kernels.rows import slices_shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LsqConfiguration:
    """One row of LSQ+'s Table 1: whether codes are signed, and whether an offset is learned beside the scale.

    Example:
        >>> import qmath
        >>> qmath.LsqConfiguration(signed=False, offset=True).code_range(4)
        (0, 15)
    """

    signed: bool
    offset: bool

    def code_range(self, bits: int) -> tuple[int, int]:
        """Return (n, p): -2^(bits-1)..2^(bits-1)-1 when signed, else 0..2^bits-1.

        Raises:
            ValueError: For bits outside 1..16 (2..16 when signed).

        Example:
            >>> import qmath
            >>> qmath.lsq_configuration(3).code_range(4)
            (-8, 7)
        """
        bits = as_bit_count(bits, low=2 if self.signed else 1)
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)


_CONFIGURATIONS = {
    1: LsqConfiguration(signed=False, offset=False),
    2: LsqConfiguration(signed=True, offset=False),
    3: LsqConfiguration(signed=True, offset=True),
    4: LsqConfiguration(signed=False, offset=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LsqGradients:
    """Gradients of a loss for x (of its shape), and for scale and offset (scalars, or 1-D along the axis).

    Each is in units of the loss per unit of x; see `qmath.lsq_gradients`.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> one = np.ones(())
        >>> float(qmath.LsqGradients(x=np.ones(3), scale=one, offset=one).x.sum())
        3.0
    """

    x: NDArray[np.float64]
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


def lsq_configuration(number: int) -> LsqConfiguration:
    """Return a configuration of LSQ+ by its number in Table 1.

    1 is unsigned (LSQ for activations), 2 signed (weights), 3 signed with an offset, 4 unsigned with an offset. Source:
    LSQ+, Table 1.

    Raises:
        ValueError: For another number.

    Example:
        >>> import qmath
        >>> qmath.lsq_configuration(3)
        LsqConfiguration(signed=True, offset=True)
    """
    if number not in _CONFIGURATIONS:
        raise ValueError(f"configuration: expected 1, 2, 3 or 4, found {number!r}")
    return _CONFIGURATIONS[number]


def lsq_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    offset: ArrayLike = 0.0,
    *,
    bits: int,
    configuration: int = 4,
    axis: int | None = None,
) -> NDArray[np.float64]:
    """Return x_hat = round(clamp((x - offset) / scale, n, p)) scale + offset, ties to even, in float64 (LSQ+, Eq. 2).

    `scale` (> 0) and `offset` (units of x; 0 in configurations 1 and 2) are scalars, or 1-D along `axis`. The result
    has the shape of `x`.

    Raises:
        ValueError: For values that are not finite, or parameters that do not fit.

    Example:
        >>> import qmath
        >>> qmath.lsq_quantize([-1.0, 0.3, 9.0], 0.5, -0.25, bits=2).tolist()
        [-0.25, 0.25, 1.25]
    """
    values, steps, shift, low, high = _operands(x, scale, offset, bits, configuration, axis)
    codes = np.rint(np.clip((values - shift) / steps, low, high))
    return (codes * steps + shift).reshape(np.shape(x))


def lsq_gradients(
    upstream: ArrayLike,
    x: ArrayLike,
    scale: ArrayLike,
    offset: ArrayLike = 0.0,
    *,
    bits: int,
    configuration: int = 4,
    axis: int | None = None,
    factor: float = 1.0,
) -> LsqGradients:
    """Return the straight-through gradients of a loss whose gradient for x_hat is `upstream` (LSQ+, Eq. 3 and 4).

    `upstream` has the shape of `x`; the formulas are in `qmath.learned`. The gradients of scale and offset are summed
    over the values that share them and multiplied by `factor` (see `lsq_gradient_scale`); that of the offset is 0 in
    configurations 1 and 2, which have none. Other arguments as for `lsq_quantize`.

    Raises:
        ValueError: As `lsq_quantize`, and for an `upstream` of another shape.

    Example:
        >>> import qmath
        >>> gradients = qmath.lsq_gradients([1.0, 1.0, 1.0], [-1.0, 0.75, 9.0], 1.0, bits=2)
        >>> gradients.x.tolist(), float(gradients.scale), float(gradients.offset)
        ([0.0, 1.0, 0.0], 3.25, 2.0)
    """
    values, steps, shift, low, high = _operands(x, scale, offset, bits, configuration, axis)
    above = as_parameter(upstream, "upstream")
    if above.shape != np.shape(x):
        raise ValueError(f"upstream: expected the shape {np.shape(x)} of x, found {above.shape}")
    above = above.reshape(values.shape)
    v = (values - shift) / steps
    inside = (low < v) & (v < high)
    by_scale = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    by_offset = np.where(inside | (not lsq_configuration(configuration).offset), 0.0, 1.0)
    shape = np.shape(scale) if axis is None else (steps.size,)
    return LsqGradients(
        x=(above * inside).reshape(np.shape(x)),
        scale=factor * (above * by_scale).sum(axis=(0, 2)).reshape(shape),
        offset=factor * (above * by_offset).sum(axis=(0, 2)).reshape(shape),
    )


def lsq_gradient_scale(count: int, *, bits: int, configuration: int = 4) -> float:
    """Return LSQ's gradient scale 1 / sqrt(count p), which balances the gradient of a scale shared by `count` values.

    p is the highest code. Source: LSQ (Esser et al. 2019), section 2.2.

    Raises:
        ValueError: For a count that is not an integer >= 1, or bits outside the configuration's range.

    Example:
        >>> import qmath
        >>> qmath.lsq_gradient_scale(15, bits=4)
        0.06666666666666667
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"count: expected a whole number >= 1, found {count!r}")
    return 1.0 / math.sqrt(float(count) * lsq_configuration(configuration).code_range(bits)[1])


def minmax_parameters(
    low: ArrayLike, high: ArrayLike, *, bits: int, configuration: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (scale, offset) whose code range spans [low, high] (LSQ+, Eq. 7).

    scale = (high - low) / (p - n), offset = low - n scale, in the units of x. Without an offset (configurations 1 and
    2) the scale is the smallest that clips neither end, as far as the code range reaches. `low` and `high` broadcast,
    and the results have their shape; empty ranges get scale 1.

    Raises:
        ValueError: For low > high, or ends that are not finite.

    Example:
        >>> import qmath
        >>> scale, offset = qmath.minmax_parameters(-1.0, 2.0, bits=2)
        >>> float(scale), float(offset)
        (1.0, -1.0)
    """
    chosen = lsq_configuration(configuration)
    n, p = chosen.code_range(bits)
    below, above = np.broadcast_arrays(as_parameter(low, "low"), as_parameter(high, "high"))
    if (below > above).any():
        raise ValueError(f"low, high: expected low <= high, found {below} and {above}")
    if chosen.offset:
        scale = _usable(above / (p - n) - below / (p - n))
        return scale, below - n * scale
    reach = np.maximum(above / p, below / n if n else 0.0)
    return _usable(reach), np.zeros_like(reach)


def lsq_scale(v: ArrayLike, *, bits: int, configuration: int = 2, axis: int | None = None) -> NDArray[np.float64]:
    """Return LSQ's initial scale 2 mean|v| / sqrt(p) of weights or activations, overall or per slice along `axis`.

    p is the highest code. Returns shape (), or (slices,), in the units of v. Source: LSQ (Esser et al. 2019), section
    2.1.

    Raises:
        ValueError: For values that are not finite, or slices that are all zero.

    Example:
        >>> import qmath
        >>> float(qmath.lsq_scale([-1.0, 3.0], bits=1, configuration=1))
        4.0
    """
    p = lsq_configuration(configuration).code_range(bits)[1]
    slices = _slices(v, axis)
    return _positive(2.0 * np.abs(slices).mean(axis=1) / math.sqrt(p), axis)


def lsqplus_weight_scale(w: ArrayLike, *, bits: int, axis: int | None = None) -> NDArray[np.float64]:
    """Return LSQ+'s initial weight scale max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(bits-1), overall or per slice.

    mu is the mean of w itself (the text's "same as <|w|>" is a slip), sigma the standard deviation. Slices run along
    `axis`. Returns shape (), or (slices,), in the units of w. Source: LSQ+, section 3.2.1.

    Raises:
        ValueError: For values that are not finite, or slices that are all zero.

    Example:
        >>> import qmath
        >>> float(qmath.lsqplus_weight_scale([-1.0, 1.0], bits=4))
        0.375
    """
    bits = as_bit_count(bits, low=2)
    slices = _slices(w, axis)
    mean, spread = slices.mean(axis=1), 3.0 * slices.std(axis=1)
    return _positive(np.maximum(np.abs(mean - spread), np.abs(mean + spread)) / 2 ** (bits - 1), axis)


def folded_offset(w: ArrayLike, offset: float, *, axis: int = 0) -> NDArray[np.float64]:
    """Return what an activation offset adds to each output: offset times the sum of its weights (LSQ+, Eq. 5).

    `w` holds the dequantized weights, outputs along `axis`; the result has shape (outputs,), in the units of the
    output. Exact where every input of the sum carries the offset; where a convolution pads with zeros, the padded
    inputs do not.

    Raises:
        ValueError: For an offset that is not a scalar, values that are not finite, or a missing axis.

    Example:
        >>> import qmath
        >>> qmath.folded_offset([[1.0, 2.0], [0.5, -1.0]], 0.5).tolist()
        [1.5, -0.25]
    """
    return float(as_parameter(offset, "offset").reshape(())) * _slices(w, as_axis(axis, np.ndim(w))).sum(axis=1)


def _operands(
    x: ArrayLike, scale: ArrayLike, offset: ArrayLike, bits: int, configuration: int, axis: int | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int, int]:
    """x as (outer, channels, inner), scale and offset to broadcast with it, n and p; all checked."""
    chosen = lsq_configuration(configuration)
    data = as_data(x)
    check_finite(data, "x")
    steps = as_parameter(scale, "scale", positive=True)
    shift = as_parameter(offset, "offset")
    if not chosen.offset and shift.any():
        raise ValueError(f"offset: configuration {configuration} has none (use 3 or 4), found {shift}")
    if steps.ndim != (0 if axis is None else 1) or shift.shape not in ((), steps.shape):
        expected = "scalars without axis" if axis is None else f"1-D arrays along axis {axis}"
        raise ValueError(f"scale, offset: expected {expected}, found shapes {steps.shape} and {shift.shape}")
    shape = slices_shape(data.shape, axis, steps.size)
    shift = np.broadcast_to(shift, steps.shape).reshape(1, -1, 1)
    return data.astype(np.float64).reshape(shape), steps.reshape(1, -1, 1), shift, *chosen.code_range(bits)


def _slices(values: ArrayLike, axis: int | None) -> NDArray[np.float64]:
    """The values as float64 rows: a single one, or one per slice along `axis`."""
    data = as_data(values)
    check_finite(data, "values")
    if axis is None:
        return data.astype(np.float64).reshape(1, -1)
    data = np.moveaxis(data, as_axis(axis, data.ndim), 0)
    return data.astype(np.float64).reshape(data.shape[0], -1)


def _positive(scale: NDArray[np.float64], axis: int | None) -> NDArray[np.float64]:
    if not (scale > 0).all():
        raise ValueError(f"values: expected a non-zero value in every slice, found scales {scale}")
    return scale if axis is not None else scale.reshape(())


def _usable(scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(scale > 0, scale, 1.0)
