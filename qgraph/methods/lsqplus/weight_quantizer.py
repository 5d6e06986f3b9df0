"""The learned quantizer of weights in NumPy: weights are small, so this stays outside the graph.

With v = w / scale, codes n..p and the straight-through estimator (LSQ+, Eq. 2 and 3 without offset):

    w_hat = round(clamp(v, n, p)) scale
    dw = g where n < v < p, else 0        dscale = sum g (round(v) - v) inside, g n or g p outside
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.plan.plan import WeightQuant

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGrid:
    """The grid of one weight, without its scale, which is learned."""

    quant: WeightQuant

    def quantize(self, w: Floats, scale: Floats) -> Floats:
        """w_hat as the exported file computes it: round(w / scale), then one float32 product."""
        steps = self.quant.granularity.lay(scale, w.shape)
        values: Floats = self._rounded(w / steps) * steps
        return values

    def gradients(self, g: Floats, w: Floats, scale: Floats) -> tuple[Floats, Floats]:
        """(dL/dw, dL/dscale) for g = dL/dw_hat."""
        shared = self.quant.granularity
        v = w / shared.lay(scale, w.shape)
        low, high = self._limits(w.shape)
        inside = (v > low) & (v < high)
        slope = self._rounded(v)
        slope -= v * inside
        slope *= g
        by_scale = (shared if scale.size > 1 else qmath.Granularity()).reduce(np.add, slope)
        return g * inside, by_scale.reshape(scale.shape)

    def _rounded(self, v: Floats) -> Floats:
        """The codes of values in units of the scale, which changes too often for a `qmath.Grid` to pay."""
        codes: Floats = np.clip(np.rint(v), *self._limits(v.shape))
        return codes

    def _limits(self, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        low, high = np.array(self.quant.limits, np.float32).T
        return self.quant.granularity.lay(low, shape), self.quant.granularity.lay(high, shape)
