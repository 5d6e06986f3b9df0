"""The error of the best grid for Gaussian weights, against a search on a fine sum."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qgraph.methods.zeroq.predict import unit_error


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_least_error_of_a_symmetric_grid_with_zero(bits):
    """2^(bits-1) - 1 levels on either side of zero, at the clip that a fine search finds."""
    x = np.linspace(-8, 8, 40_001)
    weight = stats.norm.pdf(x)
    weight /= weight.sum()
    top = 2 ** (bits - 1) - 1
    errors = [
        float(weight @ np.square(x - np.clip(np.rint(x / step), -top, top) * step))
        for step in np.geomspace(0.5, 6, 400) / top
    ]
    assert unit_error(bits) == pytest.approx(min(errors), rel=2e-3)
