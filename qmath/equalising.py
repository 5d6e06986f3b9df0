"""Equalisation: factors between layers that share the noise of quantization between activations and weights.

Where nothing but homogeneous operators (ReLU, sums) lies between, channel k of a tensor x may be divided by s_k in the
weights that write it and multiplied again in those that read it. Writers with a scale per output channel are the same
afterwards. For a reader with weights W (channel k of x meets output c by W_kc), rounding x / s on one grid of step a,
and s W on a grid of step b_c for every output, adds to the reader's outputs, relative to their power P, the noise

    N(s) P = a^2 / 12  sum_k s_k^2 |W_k|^2  +  sum_c b_c^2 / 12  sum_k v_k / s_k^2                                  (1)
    a = (max_k high_k / s_k - min_k low_k / s_k) / (2^p - 1),        b_c = max_k s_k |W_kc| / (2^(q-1) - 1)

where v_k is the second moment of channel k and the sums over k run over the inputs of output c. What several readers
add is summed. In u = log s every term is a maximum or a sum of exponentials of linear functions, and N is log-convex
along every line (`qmath.balancing`). The plane searched is

    s_k = r_k^e / m_k^f,        r_k = max(|low_k|, |high_k|),  m_k = max_c |W_kc|

e = 1 and f = 0 gives every channel the same range; e = f = 1/2 is the rule of data-free quantization (Nagel et al.,
2019, Eq. 11). Which is best depends on the bits of both sides, and Eq. 1 says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_bit_count, as_parameter
from qmath.late import LateModule

optimize = LateModule("scipy.optimize")
_LEAST = 2.0**-8  # of the widest channel: narrower ones are taken for as wide


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingLayer:
    """A layer that reads a tensor: the K channels of the tensor, and the weights that multiply them.

    `low`, `high` and `moment` (the second moment) have shape (K,), in the units of x and their square. `weight` is
    K x C; with `apart`, every channel has C outputs of its own, as in a depthwise convolution, whose weights are
    K x C too. `bits` and `weight_bits` are those of the two grids, `power` that of the outputs, in squared units.

    Example:
        >>> import qmath
        >>> tensor = {"low": [0, 0], "high": [1, 4], "moment": [0.1, 2.0]}
        >>> found = qmath.equalise_channels([qmath.ReadingLayer(**tensor, weight=[[1], [1]], bits=4, weight_bits=8)])
        >>> found.noise < found.plain_noise
        True
    """

    low: ArrayLike
    high: ArrayLike
    moment: ArrayLike
    weight: ArrayLike
    bits: int
    weight_bits: int
    power: float = 1.0
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Equalised:
    """Factors (K,) with a geometric mean of 1, the exponents e and f of Eq. 1, and the noise with and without them.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> qmath.Equalised(factors=np.ones(2), exponents=(0.0, 0.0), noise=0.1, plain_noise=0.1).noise
        0.1
    """

    factors: NDArray[np.float64]
    exponents: tuple[float, float]
    noise: float
    plain_noise: float


def equalise_channels(readers: Sequence[ReadingLayer]) -> Equalised:
    """Return the factors s of least noise, Eq. 1 of `qmath.equalising`, for all readers of a tensor or of tied tensors.

    Raises:
        ValueError: For no reader, shapes that do not fit, NaN, infinities, and negative moments.
        TypeError: For anything but real numbers.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> weight = np.ones((4, 2))
        >>> narrow = {"low": [-1, -1, -1, -16], "high": [1, 1, 1, 16], "moment": [0.1, 0.1, 0.1, 30]}
        >>> found = qmath.equalise_channels([qmath.ReadingLayer(**narrow, weight=weight, bits=4, weight_bits=8)])
        >>> found.exponents[0] > 0.5, round(found.noise / found.plain_noise, 2) < 0.4
        (True, True)
    """
    sides = [_Side.of(reader) for reader in readers]
    if not sides or len({len(side.low) for side in sides}) != 1:
        raise ValueError("readers: expected at least one, all of as many channels")
    reach = np.max([_even(np.maximum(-side.low, side.high)) for side in sides], axis=0)
    heavy = np.max([_even(side.largest) for side in sides], axis=0)
    logs = np.log(np.maximum(reach, _LEAST)), -np.log(np.maximum(heavy, _LEAST))

    def factors(exponents: NDArray[np.float64]) -> NDArray[np.float64]:
        line = exponents[0] * logs[0] + exponents[1] * logs[1]
        return np.asarray(np.exp(line - line.mean()))

    def noise(exponents: NDArray[np.float64]) -> float:
        s = factors(exponents)
        return float(np.log(max(sum(side.noise(s) for side in sides), 1e-300)))

    starts = [np.zeros(2), np.array([1.0, 0.0]), np.array([0.5, 0.5])]
    first = min(starts, key=noise)
    options = {"xatol": 0.01, "fatol": 1e-3, "maxfev": 80}
    simplex = first + np.array([[0.0, 0.0], [-0.25, 0.0], [0.0, 0.25]])
    found = optimize.minimize(noise, first, method="Nelder-Mead", options={**options, "initial_simplex": simplex})
    best = min([np.zeros(2), np.asarray(found.x)], key=noise)
    return Equalised(
        factors=factors(best),
        exponents=(float(best[0]), float(best[1])),
        noise=float(np.exp(noise(best))),
        plain_noise=float(np.exp(noise(np.zeros(2)))),
    )


def _even(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values relative to the largest."""
    return values / max(values.max(initial=0.0), 1e-300)


@dataclass(frozen=True, slots=True)
class _Side:
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    moment: NDArray[np.float64]
    weight: NDArray[np.float64]
    squared: NDArray[np.float64]
    largest: NDArray[np.float64]
    steps: float
    weight_steps: float
    power: float
    apart: bool

    @classmethod
    def of(cls, reader: ReadingLayer) -> _Side:
        weight = np.abs(as_parameter(reader.weight, "weight"))
        low, high = (as_parameter(part, name) for name, part in (("low", reader.low), ("high", reader.high)))
        moment = as_parameter(reader.moment, "moment", non_negative=True)
        if weight.ndim != 2 or not low.shape == high.shape == moment.shape == weight.shape[:1]:
            raise ValueError(
                f"reader: expected a weight of K x C and K low, high and moment, found a weight of shape "
                f"{list(weight.shape)}, {low.size} low, {high.size} high and {moment.size} moment"
            )
        return cls(
            low=np.minimum(low, 0.0),
            high=np.maximum(high, 0.0),
            moment=moment,
            weight=weight,
            squared=np.square(weight).sum(axis=1),
            largest=weight.max(axis=1, initial=0.0),
            steps=2.0 ** as_bit_count(reader.bits) - 1,
            weight_steps=2.0 ** (as_bit_count(reader.weight_bits) - 1) - 1,
            power=max(float(reader.power), 1e-300),
            apart=reader.apart,
        )

    def noise(self, s: NDArray[np.float64]) -> float:
        """N of Eq. 1."""
        step = (np.max(self.high / s) - np.min(self.low / s)) / self.steps
        of_x = step**2 * np.sum(s**2 * self.squared)
        if self.apart:  # every channel has steps of its own, in which its factor cancels
            of_weight = np.sum(np.square(self.largest / self.weight_steps) * self.moment) * self.weight.shape[1]
        else:
            columns = np.max(self.weight * s[:, None], axis=0, initial=0.0) / self.weight_steps
            of_weight = np.square(columns).sum() * np.sum(self.moment / s**2)
        return float(of_x + of_weight) / 12 / self.power
