"""The learned quantizer of weights, in NumPy: they are small, and so stay outside of the graph.

With v = w / scale, codes n..p and the straight-through estimator (LSQ+, Eq. 2 and 3 without offset):

    w_hat = round(clamp(v, n, p)) scale
    dw = g where n < v < p, else 0        dscale = sum g (round(v) - v) inside, g n or g p outside
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.plan.plan import WeightQuant

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGrid:
    """Codes qmin..qmax and scale: one for all, or one for every slice along `axis`."""

    qmin: NDArray[np.float32]
    qmax: NDArray[np.float32]
    axis: int | None

    @classmethod
    def of(cls, grid: WeightQuant) -> WeightGrid:
        """The grid of a plan, without zero points."""
        low, high = np.array(grid.limits, np.float32).T
        return cls(qmin=low, qmax=high, axis=grid.axis)

    def quantize(self, w: Floats, scale: Floats) -> Floats:
        """w_hat, computed as the exported file does: round(w / scale), then one float32 product."""
        steps = self._along(scale, w.ndim)
        values: Floats = self._clip(np.rint(w / steps)) * steps
        return values

    def gradients(self, g: Floats, w: Floats, scale: Floats) -> tuple[Floats, Floats]:
        """(dL/dw, dL/dscale) for g = dL/dw_hat."""
        v = w / self._along(scale, w.ndim)
        inside = (v > self._along(self.qmin, w.ndim)) & (v < self._along(self.qmax, w.ndim))
        slope = self._clip(np.rint(v))
        slope -= v * inside
        axes = tuple(a for a in range(w.ndim) if a != self.axis)
        by_scale = np.asarray(np.sum(g * slope, axis=axes, dtype=np.float32)).reshape(scale.shape)
        return g * inside, by_scale

    def _clip(self, codes: Floats) -> Floats:
        clipped: Floats = np.clip(codes, self._along(self.qmin, codes.ndim), self._along(self.qmax, codes.ndim))
        return clipped

    def _along(self, parameter: Floats, rank: int) -> Floats:
        if parameter.size == 1:
            return parameter.reshape([1] * rank)
        return parameter.reshape([-1 if a == self.axis else 1 for a in range(rank)])
