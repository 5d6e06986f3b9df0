"""Noise that resembles natural images: neighbouring positions are similar, amplitudes fall as 1/frequency.

Natural images have power spectra close to 1/f^2 (Field, 1987). Distillation starts from such noise, and falls back on
it if a model has nothing to distil from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_SHARED = 0.8  # share of the variance common to all channels, as images are mostly grey


def natural_noise(shapes: Mapping[str, Sequence[int]], *, seed: int | Sequence[int]) -> dict[str, NDArray[np.float32]]:
    """A batch for every input, with mean 0 and variance 1 in each channel; Gaussian where there are no positions."""
    rng = np.random.default_rng(seed)
    return {name: _samples(rng, tuple(shape)) for name, shape in shapes.items()}


def _samples(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if len(shape) < 3:
        return rng.standard_normal(shape, np.float32)
    grey = _pink(rng, (shape[0], 1, *shape[2:]))
    mixed = np.sqrt(_SHARED) * grey + np.sqrt(1 - _SHARED) * _pink(rng, shape)
    axes = tuple(range(2, len(shape)))
    centred = mixed - mixed.mean(axes, keepdims=True)
    result: NDArray[np.float32] = (centred / (centred.std(axes, keepdims=True) + 1e-6)).astype(np.float32)
    return result


def _pink(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """White noise with its amplitudes divided by the frequency."""
    axes = tuple(range(2, len(shape)))
    spatial = shape[2:]
    grids = [np.fft.fftfreq(n) for n in spatial[:-1]] + [np.fft.rfftfreq(spatial[-1])]
    squares = sum(f**2 for f in np.meshgrid(*grids, indexing="ij"))
    frequency = np.sqrt(np.maximum(squares, 1.0 / max(spatial) ** 2))
    spectrum = np.fft.rfftn(rng.standard_normal(shape), axes=axes) / frequency
    pink = np.fft.irfftn(spectrum, s=spatial, axes=axes)
    deviation: NDArray[np.float64] = pink / pink.std(axes, keepdims=True)
    return deviation
