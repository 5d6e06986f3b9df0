"""Rounding with a slope: a smooth staircase between the identity and round to nearest.

With r = v - floor(v) - 1/2, the distance from the middle between two integers, and a hardness h > 0,

    s_h(v) = floor(v) + 1/2 + tanh(h r) / (2 tanh(h / 2)),        s_h'(v) = h (1 - tanh^2(h r)) / (2 tanh(h / 2))

s_h leaves every integer in its place, tends to v for h -> 0 and to round(v) for h -> infinity. Source: Agustsson and
Theis, Universally Quantized Neural Compression, 2020, Eq. 17. Training that raises h lets each value choose between
its neighbours, as AdaRound's stretched sigmoids do (Nagel et al., 2020), but values may pass more than one integer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_parameter


def soft_round(values: ArrayLike, hardness: float) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return s_h of every value, and the slope s_h' there; hardness 0 is the identity.

    `values` have any shape, in steps of the grid; float32 stays float32. Source: Agustsson and Theis, 2020, Eq. 17.

    Raises:
        ValueError: For a negative or infinite hardness, NaN and infinities.
        TypeError: For anything but real numbers.

    Example:
        >>> import qmath
        >>> [round(float(v), 2) for v in qmath.soft_round([0.25, 0.5, 0.75, 2.0], 8.0)[0]]
        [0.02, 0.5, 0.98, 2.0]
    """
    v = np.asarray(values) if isinstance(values, np.ndarray) and values.dtype == np.float32 else None
    v = as_parameter(values, "values") if v is None or not np.isfinite(v).all() else v
    h = float(as_parameter(hardness, "hardness", non_negative=True))
    if h < 1e-3:  # where the staircase is the identity to 1e-7
        return v.copy(), np.ones_like(v)
    below = np.floor(v)
    rise = np.tanh(v.dtype.type(h) * (v - below - v.dtype.type(0.5)))
    unit = v.dtype.type(0.5 / np.tanh(h / 2))
    return below + v.dtype.type(0.5) + rise * unit, v.dtype.type(h) * (1 - rise * rise) * unit
