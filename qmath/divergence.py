"""Distances between quantized and float outputs: KL divergence, signal-to-noise ratio, cosine similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from qmath._validation import as_data, as_parameter
from qmath.late import LateModule
from qmath.sample import Floats

special = LateModule("scipy.special")


def kl_divergence(p_logits: ArrayLike, q_logits: ArrayLike, *, axis: int = -1, mean: bool = False) -> Floats:
    """Return KL(softmax(p) || softmax(q)) in nats along `axis`; with `mean`, averaged over the rest (ZeroQ, Eq. 2).

    sum softmax(p) (log softmax(p) - log softmax(q)), computed stably from the logits; negative rounding errors are cut
    at 0. The shapes must be equal; the result drops `axis`, and has shape () with `mean`.

    Raises:
        ValueError: For unequal shapes, empty or non-finite logits.

    Example:
        >>> import qmath
        >>> round(float(qmath.kl_divergence([0.0, 1.0], [0.0, 0.0])), 4)
        0.1109
    """
    p, q = _pair(p_logits, q_logits, names=("p_logits", "q_logits"))
    log_p, log_q = special.log_softmax(p, axis=axis), special.log_softmax(q, axis=axis)
    divergence = np.maximum(np.sum(np.exp(log_p) * (log_p - log_q), axis=axis), 0.0)
    return np.asarray(divergence.mean() if mean else divergence)


def sqnr_db(x: ArrayLike, y: ArrayLike, *, axis: int | tuple[int, ...] | None = None) -> Floats:
    """Return the signal-to-quantization-noise ratio of y, a stand-in for x, in dB over `axis`.

    10 log10(sum x^2 / sum (x - y)^2), summed over `axis` (None: all values), which the result drops. Infinite where y
    equals x (even if both are zero), minus infinity where only x is zero.

    Raises:
        ValueError: For unequal shapes, empty or non-finite arrays.

    Example:
        >>> import qmath
        >>> round(float(qmath.sqnr_db([3.0, 4.0], [3.0, 4.5])), 4)
        20.0
    """
    x, y = _pair(x, y)
    return power_ratio_db(np.sum(x * x, axis=axis), np.sum((x - y) ** 2, axis=axis))


def power_ratio_db(signal: ArrayLike, noise: ArrayLike) -> Floats:
    """Return 10 log10(signal / noise) in dB, from powers or sums of squares.

    `signal` and `noise` (>= 0, in the same units) broadcast. This serves sums over more values than fit into memory.
    Infinite where the noise is 0, minus infinity where only the signal is; sums that overflowed count as infinite.

    Raises:
        ValueError: For negative numbers, NaN, or no numbers.

    Example:
        >>> import qmath
        >>> qmath.power_ratio_db([100.0, 1.0], 1.0).tolist()
        [20.0, 0.0]
    """
    power, error = (as_data(v, name).astype(np.float64) for v, name in ((signal, "signal"), (noise, "noise")))
    for name, values in (("signal", power), ("noise", error)):
        if not (values >= 0).all():
            raise ValueError(f"{name}: expected numbers >= 0, found {values.min()}")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10 * (np.log10(power) - np.log10(error))
    return np.asarray(np.where(error == 0, np.inf, ratio))


def cosine_similarity(x: ArrayLike, y: ArrayLike, *, axis: int | tuple[int, ...] | None = None) -> Floats:
    """Return sum x y / (||x|| ||y||), in [-1, 1], over `axis`; 1 where both are zero, 0 where one is.

    `axis` None takes all values; the result drops `axis`.

    Raises:
        ValueError: For unequal shapes, empty or non-finite arrays.

    Example:
        >>> import qmath
        >>> round(float(qmath.cosine_similarity([1.0, 0.0], [1.0, 1.0])), 4)
        0.7071
    """
    x, y = _pair(x, y)
    top_x, top_y = (np.max(np.abs(values), axis=axis, keepdims=True) for values in (x, y))
    x, y = x / np.where(top_x > 0, top_x, 1.0), y / np.where(top_y > 0, top_y, 1.0)  # no overflow in the squares
    norms = np.sqrt(np.sum(x * x, axis=axis) * np.sum(y * y, axis=axis))
    both_zero = np.squeeze((top_x == 0) & (top_y == 0), axis=axis)
    cosine = np.sum(x * y, axis=axis) / np.where(norms > 0, norms, 1.0)
    return np.asarray(np.where(both_zero, 1.0, np.clip(cosine, -1.0, 1.0)))


def _pair(x: ArrayLike, y: ArrayLike, *, names: tuple[str, str] = ("x", "y")) -> tuple[Floats, Floats]:
    first, second = as_parameter(x, names[0]), as_parameter(y, names[1])
    if first.shape != second.shape:
        raise ValueError(f"{names[0]} has shape {first.shape}, {names[1]} {second.shape}: they must be equal")
    return first, second
