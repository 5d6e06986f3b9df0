"""Steps of groups as whole multiples of a unit per channel: what integer kernels can add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import PlanError

_WHOLE = 1e-3  # how far a multiple may be from a whole number; float32 is off by less


def multiples(scale: Sequence[float], unit: Sequence[float], granularity: qmath.Granularity) -> NDArray[np.int64]:
    """How many units each step has, as groups x channels along axis 0, else the transpose; `PlanError` if not whole."""
    axis = granularity.axis
    if granularity.group is None or axis is None:
        raise PlanError(f"a weight grid has units where groups of inputs have scales, not {granularity}")
    if len(scale) % len(unit):
        raise PlanError(f"{len(scale)} scales of groups do not fit {len(unit)} units of channels")
    shape = (-1, len(unit)) if axis == 0 else (len(unit), -1)
    ratio = np.reshape(scale, shape) / np.expand_dims(np.asarray(unit), min(axis, 1))
    whole = np.rint(ratio)
    if (np.abs(ratio - whole) > _WHOLE).any():
        raise PlanError("the scale of every group must be a whole multiple of its channel's unit")
    return whole.astype(np.int64)
