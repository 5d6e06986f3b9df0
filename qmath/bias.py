"""How rounding changes the mean and spread of weights, and how to undo it (ACIQ, section 4; Q-Rater, section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from qmath._content import ByContent
from qmath._validation import as_axis, as_parameter
from qmath.sample import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BiasCorrection(ByContent):
    """ACIQ's corrections per channel: `shift` mu_c, in the units of w, and `gain` xi_c.

    Both have shape (channels,), or () without axis. Source: ACIQ, Eq. 12; made by `qmath.bias_correction`.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> correction = qmath.BiasCorrection(shift=np.array([0.5]), gain=np.array([2.0]), axis=0)
        >>> correction.apply([[1.0, 2.0]]).tolist()
        [[3.0, 5.0]]
    """

    shift: Floats
    gain: Floats
    axis: int | None

    def apply(self, wq: ArrayLike) -> Floats:
        """Return gain (wq + shift) along the axis (ACIQ, Eq. 13).

        As printed there, it scales about zero, so that the mean becomes gain E[w].

        Raises:
            ValueError: For another number of channels than the correction's.
        """
        values = as_parameter(wq, "wq")
        if self.axis is None:
            return np.asarray(self.gain * (values + self.shift))
        shape = [1] * values.ndim
        shape[self.axis] = -1
        if values.shape[self.axis] != self.shift.size:
            raise ValueError(
                f"wq has {values.shape[self.axis]} channels along axis {self.axis}, the correction {self.shift.size}"
            )
        return np.asarray(self.gain.reshape(shape) * (values + self.shift.reshape(shape)))


def bias_correction(w: ArrayLike, wq: ArrayLike, *, axis: int | None = 0) -> BiasCorrection:
    """Return the corrections that give each channel of wq the mean and the spread of w (ACIQ, Eq. 12).

        mu_c = E[w_c] - E[wq_c],    xi_c = ||w_c - E[w_c]|| / ||wq_c - E[wq_c]||

    `w` and `wq` have the same shape and units; channels run along `axis` (None: the tensor is one channel). A channel
    that was rounded to a single value has no spread to restore: its gain is 1.

    Raises:
        ValueError: For unequal shapes, a missing axis, empty or non-finite arrays.

    Example:
        >>> import qmath
        >>> correction = qmath.bias_correction([[0.0, 1.5, 3.0]], [[0.0, 1.0, 2.0]])
        >>> correction.shift.round(4).tolist(), correction.gain.round(4).tolist()
        ([0.5], [1.5])
    """
    first, second = _same_shape(w, wq)
    rows, rounded = _channels(first, axis), _channels(second, axis)
    mean, rounded_mean = rows.mean(axis=1), rounded.mean(axis=1)
    spread = np.linalg.norm(rows - mean[:, None], axis=1)
    rounded_spread = np.linalg.norm(rounded - rounded_mean[:, None], axis=1)
    flat = np.ptp(rounded, axis=1) == 0
    gain = np.where(flat, 1.0, spread / np.where(flat, 1.0, rounded_spread))
    shift = mean - rounded_mean
    if axis is None:
        return BiasCorrection(shift=shift[0], gain=gain[0], axis=None)
    return BiasCorrection(shift=shift, gain=gain, axis=axis)


def output_shift(
    w: ArrayLike,
    wq: ArrayLike,
    x_mean: ArrayLike,
    *,
    xq_mean: ArrayLike | None = None,
    axis: int = 0,
    groups: int = 1,
) -> Floats:
    """Return the mean output error per channel, E[W x] - E[W' x'], which is to be added to the bias (Q-Rater, Eq. 7).

    `w` and `wq` are a matrix or a convolution kernel with output channels along `axis` (0, or 1 for x @ w); the other
    of the first two axes holds inputs / groups, any further ones are kernel taps. `x_mean` is the mean of the layer's
    input, shape (input channels,), and `xq_mean` that of the quantized input, by default the same. Zero padding at the
    border, where fewer taps meet data, is neglected. Returns shape (output channels,), in the units of the output.

    Raises:
        ValueError: For shapes that do not fit.

    Example:
        >>> import qmath
        >>> qmath.output_shift([[1.0, 2.5]], [[1.0, 2.0]], [3.0, 4.0]).tolist()
        [2.0]
    """
    first, second = _same_shape(w, wq)
    if first.ndim < 2 or axis not in (0, 1) or (axis == 1 and groups != 1):
        raise ValueError(f"w needs outputs x inputs along axes 0 and 1 (groups only with axis=0), found {first.shape}")
    mean = as_parameter(x_mean, "x_mean")
    quantized_mean = mean if xq_mean is None else as_parameter(xq_mean, "xq_mean")
    outputs, inputs = first.shape[axis], first.shape[1 - axis] * groups
    if outputs % groups or mean.shape != (inputs,) or quantized_mean.shape != (inputs,):
        raise ValueError(
            f"w of shape {first.shape} with groups={groups} takes {inputs} input channels and gives {outputs} outputs: "
            f"x_mean of shape ({inputs},) expected, found {mean.shape} and {quantized_mean.shape}"
        )

    def response(weight: Floats, means: Floats) -> Floats:
        taps = np.moveaxis(weight, axis, 0).reshape(outputs, inputs // groups, -1).sum(axis=2)
        grouped = taps.reshape(groups, outputs // groups, -1)
        return np.asarray(np.einsum("goi,gi->go", grouped, means.reshape(groups, -1)).reshape(-1))

    return response(first, mean) - response(second, quantized_mean)


def _same_shape(w: ArrayLike, wq: ArrayLike) -> tuple[Floats, Floats]:
    first, second = as_parameter(w, "w"), as_parameter(wq, "wq")
    if first.shape != second.shape:
        raise ValueError(f"w has shape {first.shape}, wq {second.shape}: they must be equal")
    return first, second


def _channels(w: Floats, axis: int | None) -> Floats:
    if axis is None:
        return w.reshape(1, -1)
    moved = np.moveaxis(w, as_axis(axis, w.ndim), 0)
    return moved.reshape(moved.shape[0], -1)
