"""The learned quantizer of weights, in NumPy: they are small, and so stay outside of the graph.

With v = w / scale, codes n..p and the straight-through estimator (LSQ+, Eq. 2 and 3 without offset):

    w_hat = round(clamp(v, n, p)) scale
    dw = g where n < v < p, else 0        dscale = sum g (round(v) - v) inside, g n or g p outside
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGrid:
    """Codes qmin..qmax; one scale, or one for every slice along `axis`."""

    qmin: int
    qmax: int
    axis: int | None

    def quantize(self, w: Floats, scale: Floats) -> Floats:
        """w_hat, computed as the exported file does: round(w / scale), then one float32 product."""
        steps = self._along(scale, w.ndim)
        codes: Floats = np.clip(np.rint(w / steps), self.qmin, self.qmax) * steps
        return codes

    def gradients(self, g: Floats, w: Floats, scale: Floats) -> tuple[Floats, Floats]:
        """(dL/dw, dL/dscale) for g = dL/dw_hat."""
        v = w / self._along(scale, w.ndim)
        inside = (v > self.qmin) & (v < self.qmax)
        slope = np.clip(np.rint(v), self.qmin, self.qmax)
        slope -= v * inside
        axes = tuple(a for a in range(w.ndim) if a != self.axis)
        by_scale = np.asarray(np.sum(g * slope, axis=axes, dtype=np.float32)).reshape(scale.shape)
        return g * inside, by_scale

    def _along(self, scale: Floats, rank: int) -> Floats:
        return scale.reshape([-1 if a == self.axis else 1 for a in range(rank)])
