"""What is likely of the operands of layers before any sample is seen.

Behind BatchNormalization, moments follow in closed form. Of other operands, noise in place of samples tells them: they
come from biases and activation functions far more than from what goes in. In networks for text in pictures, for
detection and for classification, channel means under noise and under samples had cosines of 0.8 to 0.98 in most
convolutions, but under noise they were two to five times as large beside the spread: so they count for less.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.errors import QGraphError
from qgraph.graph.layers import Layer
from qgraph.observe.known_laws import known_laws
from qgraph.observe.propagation import Moments
from qgraph.observe.statistics import observe
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.noise import TRIED_SIZES, noise
from qgraph.samples.dataset import open_data

SHIFTED = ("Conv", "Gemm")  # layers whose operands are looked at
_SAMPLES, _SIZE = 16, 128  # of the noise, at most; the size is what is tried first where a dimension is open
_LEAST_SAMPLES, _MOST_VALUES = 2, 2**23
CONST = 0.05  # of the mean: the most that a channel may vary and count as constant
TRUST = 0.6  # of a mean under noise
DOUBT = 0.5  # the standard deviation of a channel's mean, in parts of it
SHARED = 0.2  # of a spread under noise that is not the channel's own


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of the channels of an operand: means, and standard deviations; `exact` ones, or under noise."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    exact: bool = False

    def beyond_chance(self, count: int) -> Expected:
        """The same, with means that are smaller by what `count` samples add by chance: m (1 - s^2 / (count m^2))."""
        squares, chance = np.square(self.mean), np.square(self.spread) / count
        left = np.divide(squares - chance, squares, out=np.zeros_like(squares), where=squares > chance)
        return dataclasses.replace(self, mean=self.mean * left)

    @property
    def likely(self) -> NDArray[np.float64]:
        """The means, as far as they are to be trusted."""
        return self.mean if self.exact else TRUST * self.mean

    @property
    def reach(self) -> NDArray[np.float64]:
        """The spreads, with what is not known of the means."""
        return np.sqrt(np.square(self.spread) + np.square(DOUBT * self.mean))

    @property
    def importance(self) -> NDArray[np.float64]:
        """The squared spreads, by which errors of single weights count; a part of each is that of all channels."""
        squares = np.square(self.reach)
        return SHARED * float(squares.mean()) + (1 - SHARED) * squares

    @property
    def known(self) -> NDArray[np.float64]:
        """The means that are known, 0 for the others: under noise, those of channels that hardly vary."""
        return self.mean if self.exact else np.where(self.spread <= CONST * np.abs(self.mean), self.mean, 0.0)


def expected_operands(
    model: Model, layers: list[Layer], known: Mapping[str, Moments], *, threads: int | None = None
) -> dict[str, Expected]:
    """What is expected, by the names of layers; `known` are moments of outputs of BatchNormalization."""
    return noise_operands(model, layers, threads=threads) | known_operands(model, layers, known)


def known_operands(model: Model, layers: list[Layer], known: Mapping[str, Moments]) -> dict[str, Expected]:
    """What follows from BatchNormalization for operands, by the names of layers."""
    laws = known_laws(model, known)
    found = {}
    for layer in layers:
        law = laws.get(str(layer.input.name))
        if law is not None and law.moments.mean.size == layer.input_channels:
            expected = _of_channels(law.statistics(count=2, bins=0), layer)
            if expected is not None:
                found[layer.name] = dataclasses.replace(expected, exact=True)
    return found


def noise_operands(model: Model, layers: list[Layer], *, threads: int | None = None) -> dict[str, Expected]:
    """What operands are where noise goes in, by the names of layers; none for a model that reads more than floats.

    Of the sizes that are tried for open dimensions, the first with which the model runs counts.
    """
    if not layers or any(value.dtype is None or not value.dtype.is_floating_point() for value in model.input_values()):
        return {}
    tensors = dict(layer.operand_channels for layer in layers)
    for size in sorted(TRIED_SIZES, key=lambda size: abs(size - _SIZE)):
        one = sum(array.size for array in noise(model, size, samples=1).values())
        samples = min(_SAMPLES, _MOST_VALUES // max(one, 1))
        if samples < _LEAST_SAMPLES:
            continue
        feeds = noise(model, size, samples=samples)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of shapes that noise has and samples would not
                observed = observe(model, open_data(feeds, model), tensors=tensors, histograms=False, threads=threads)
        except QGraphError:
            continue
        found = {layer.name: _of_channels(observed[layer.operand_channels[0]], layer) for layer in layers}
        return {name: expected.beyond_chance(samples) for name, expected in found.items() if expected is not None}
    return {}


def _of_channels(statistics: qmath.Statistics, layer: Layer) -> Expected | None:
    channels = statistics.channels
    if channels is None or np.size(channels.mean) != layer.input_channels:
        return None
    mean, spread = np.asarray(channels.mean, np.float64), np.sqrt(np.asarray(channels.variance, np.float64))
    return Expected(mean, spread) if np.isfinite(mean).all() and np.isfinite(spread).all() else None
