"""Clipping ranges from data: maximum, percentile, least squared error, KL divergence, and ACIQ's fitted prior.

`clip_range` takes one tensor, as an array or a histogram; `weight_clip` and `weight_range` every channel of a weight. A
new method is one function under `@clip_method("name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._validation import as_axis, as_bit_count, as_data, check_choice, check_finite
from qmath.clipping import prior_clip
from qmath.distributions import Gaussian, Laplace, Prior
from qmath.divergence import power_ratio_db
from qmath.grid import Grid
from qmath.kernels.threads import over_threads
from qmath.prior_clipping import FAMILIES, Moments, candidates
from qmath.sample import Floats, Sample, sample_of
from qmath.stop_loss import RELATIVE_GAP, StopLoss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KL_BINS = 2048
DRAWN_BINS = 128


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ClipRange:
    """A clipping range `low <= 0 <= high`, in the units of x, and the mean squared error of the data on its grid.

    `grid` is the grid of `bits` bits over that range, and can be passed on: `qmath.fake_quantize(x, best)` takes the
    range itself as well. `signal` is the mean square of the data, so that `sqnr_db` needs no further pass.

    Example:
        >>> import qmath
        >>> best = qmath.clip_range([-1.0, 0.0, 2.0], method="max", bits=2)
        >>> best
        ClipRange(-1..2, 2 bits, error=0, method='max')
        >>> best.grid
        Grid(2 bits, -1..2, scale=1, zero_point=1, unsigned)
        >>> qmath.fake_quantize([-5.0, 0.4, 1.7], best).tolist()
        [-1.0, 0.0, 2.0]
    """

    low: float
    high: float
    error: float
    bits: int
    symmetric: bool = False
    one_sided: bool = False
    method: str = "mse"
    signal: float = 0.0
    _seen: tuple[Floats, Floats] | None = field(default=None, compare=False)
    """(counts, edges) of the data in a few bins, for `plot`."""

    def __repr__(self) -> str:
        kind = ", symmetric" if self.symmetric else ", one-sided" if self.one_sided else ""
        said = f"{self.low:.4g}..{self.high:.4g}, {self.bits} bits{kind}, error={self.error:.4g}"
        return f"ClipRange({said}, method={self.method!r})"

    @property
    def grid(self) -> Grid:
        """The grid over the range: symmetric, from zero, or affine with zero on a level."""
        if self.symmetric or self.one_sided:
            return Grid.symmetric(self.high, bits=self.bits, signed=self.symmetric)
        return Grid.affine(self.low, self.high, bits=self.bits)

    @property
    def sqnr_db(self) -> float:
        """Signal over quantization noise of the data on the grid, in dB."""
        return float(power_ratio_db(self.signal, self.error))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the data as a histogram, the levels of the grid and the range; return the matplotlib axes.

        `ax` are the axes to draw on, by default those of a new figure. Needs matplotlib.
        """
        from qmath.plots import plot_clip

        return plot_clip(self, ax)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridShape:
    """The grid of a range: symmetric -c..c with 2^bits - 1 levels, or one-sided 0..c or affine with 2^bits levels."""

    bits: int
    one_sided: bool = False
    symmetric: bool = False

    def __post_init__(self) -> None:
        as_bit_count(self.bits, low=2 if self.symmetric else 1)
        if self.one_sided and self.symmetric:
            raise ValueError("a grid is one-sided (0..c) or symmetric (-c..c), not both")

    @property
    def steps(self) -> int:
        """Number of steps between the lowest and the highest level."""
        return int(2**self.bits) - (2 if self.symmetric else 1)

    def split(self, low: float, high: float) -> tuple[float, int, int]:
        """(step, levels above zero, levels below zero) of the grid over [low, high], with zero moved onto a level."""
        step = (high - low) / self.steps
        below = int(np.rint(-low / step))
        return step, self.steps - below, below


ClipMethod = Callable[..., tuple[float, float]]
_METHODS: dict[str, ClipMethod] = {}


def clip_method(name: str) -> Callable[[ClipMethod], ClipMethod]:
    """Register a clipping method under a name for `clip_range`, `weight_clip` and `weight_range`.

    A method is a function (sample, shape, **options) -> (low, high), in the units of x, of a `qmath.sample.Sample` and
    a `qmath.empirical_clipping.GridShape`. Use it as a decorator.

    Raises:
        ValueError: For a name that is already taken.

    Example:
        >>> import qmath
        >>> @qmath.clip_method("half_of_max")
        ... def half_of_max(sample, shape):
        ...     return sample.low / 2, sample.high / 2
        >>> qmath.clip_range([-1.0, 0.5, 4.0], method="half_of_max", bits=8, symmetric=True).high
        2.0
    """

    def register(method: ClipMethod) -> ClipMethod:
        if name in _METHODS:
            raise ValueError(f"clip method '{name}' is already registered, by {_METHODS[name].__qualname__}")
        _METHODS[name] = method
        return method

    return register


def clip_methods() -> tuple[str, ...]:
    """Return the names of the methods that `clip_range`, `weight_clip` and `weight_range` accept.

    Example:
        >>> import qmath
        >>> qmath.clip_methods()[:5]
        ('max', 'percentile', 'mse', 'kl', 'aciq')
    """
    return tuple(_METHODS)


def clip_range(
    data: Any, *, method: str = "mse", bits: int, one_sided: bool = False, symmetric: bool = False, **options: Any
) -> ClipRange:
    """Choose the clipping range of a tensor by `method`, and compute its mean squared error (squared units of x).

    The result has the grid (`best.grid`, and `qmath.fake_quantize(x, best)` works), its error, and a `plot()`. `data`
    is an array of any shape, or a histogram. The grid: `symmetric` -c..c with 2^bits - 1 levels; `one_sided`
    0..c with 2^bits levels; otherwise affine, 2^bits levels with both ends chosen and zero on a level. Methods and
    their options:

    * "max": the smallest and largest value.
    * "percentile": `percentile` (default 99.99) of each tail is kept; of |x| when symmetric.
    * "mse": the least squared error over every step and every position of zero (`qmath.stop_loss`), within a relative
      1e-9. The ends are levels of that grid and may lie slightly beyond the data: moving them in would change its step.
    * "kl": the window of bins with the least KL divergence to its quantized form (Migacz, 2017); when affine, the two
      ends in turn.
    * "aciq": the analytic optimum of a prior with the data's moments (`qmath.prior_clipping`); `family` is "laplace",
      "gaussian" or None for the one with the smaller error.

    Raises:
        ValueError: For empty, non-finite or all-zero data, an unknown method or option, or bits outside 1..16 (2..16
            when symmetric).

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> x = np.random.default_rng(0).laplace(size=100_000)
        >>> best = qmath.clip_range(x, bits=4, symmetric=True)
        >>> round(best.high, 1), round(best.error, 3)
        (4.8, 0.056)
        >>> round(float(np.mean((x - qmath.fake_quantize(x, best)) ** 2)), 3)
        0.056
    """
    chosen = _lookup(method)
    shape = GridShape(bits=as_bit_count(bits), one_sided=one_sided, symmetric=symmetric)
    sample = sample_of(data)
    stop_loss = StopLoss.of(sample)
    if stop_loss.energy == 0:
        raise ValueError("every value is zero (or in a histogram's bin at zero): no range to choose")
    low, high = _spanning(shape, *_call(chosen, method, sample, shape, options))
    return ClipRange(
        low=low,
        high=high,
        error=stop_loss.error(*shape.split(low, high)),
        bits=shape.bits,
        symmetric=symmetric,
        one_sided=one_sided,
        method=method,
        signal=stop_loss.energy,
        _seen=_in_bins(sample),
    )


def _in_bins(sample: Sample) -> tuple[Floats, Floats]:
    """(counts, edges) of the sample in a few equal bins."""
    if sample.low == sample.high:
        return np.array([sample.total]), np.array([sample.low, sample.high])
    edges = np.linspace(sample.low, sample.high, DRAWN_BINS + 1)
    if sample.edges is None:
        return np.diff(np.searchsorted(sample.points, edges[:-1]), append=len(sample.points)).astype(np.float64), edges
    below = np.concatenate(([0.0], np.cumsum(sample.weights)))
    return np.diff(np.interp(edges, sample.edges, below)), edges


def least_error(data: Any, *, bits: int, one_sided: bool = False, symmetric: bool = False) -> float:
    """Return approximately the least mean squared error of any range (squared units of x): the yardstick for a clip.

    It takes some fifty steps instead of the exact search of `clip_range(method="mse")`; on smooth data it is a few per
    cent above that at most. `data`, grids and errors as for `clip_range`.

    Raises:
        ValueError: For empty or non-finite data, or bits outside 1..16 (2..16 when symmetric).

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> x = np.random.default_rng(0).laplace(size=100_000)
        >>> round(qmath.least_error(x, bits=4, symmetric=True), 3)
        0.056
    """
    shape = GridShape(bits=as_bit_count(bits), one_sided=one_sided, symmetric=symmetric)
    return StopLoss.of(sample_of(data)).least_error(shape.steps, symmetric=symmetric, one_sided=one_sided)


def weight_clip(w: ArrayLike, *, bits: int, method: str = "mse", axis: int | None = 0, **options: Any) -> Floats:
    """Choose the clip of every channel of a weight, for the symmetric grid -clip..clip with 2^bits - 1 levels.

    Channels run along `axis` (None: one clip for the tensor). "mse" is the exact minimum of sum_c (w - Q(w))^2 over
    every step, below or above that of the maximum; the other methods are those of `clip_range`. An all-zero channel
    gets 1, as any grid contains it. Returns shape (channels,), or () when `axis` is None, in the units of w.

    Raises:
        ValueError: As `clip_range`, and for an axis that w does not have.

    Example:
        >>> import qmath
        >>> qmath.weight_clip([[0.1, -0.4], [2.0, 3.0]], bits=8, method="max").tolist()
        [0.4, 3.0]
    """
    shape = GridShape(bits=as_bit_count(bits), symmetric=True)
    chosen = _lookup(method)
    rows = _rows(w, axis)
    if method == "mse" and not options:
        from qmath.kernels import clip as clip_kernels

        clips = clip_kernels.least_squares_clips(rows, shape.steps // 2)
    else:
        live = rows.any(axis=1)
        clips = np.ones(rows.shape[0])
        for i in np.flatnonzero(live):
            clips[i] = _spanning(shape, *_call(chosen, method, sample_of(rows[i]), shape, options))[1]
    return np.asarray(clips if axis is not None else clips[0])


def weight_range(
    w: ArrayLike, *, bits: int, method: str = "mse", axis: int | None = 0, **options: Any
) -> tuple[Floats, Floats]:
    """Choose the (low, high) of every channel of a weight, for the affine grid of 2^bits levels, zero among them.

    Channels run along `axis` (None: one range for the tensor). "mse" is the least sum_c (w - Q(w))^2 over every step
    and every position of zero, within a relative 1e-9; the other methods are those of `clip_range`. An all-zero channel
    gets 0..0. Returns two arrays of shape (channels,), or () when `axis` is None, in the units of w.

    Raises:
        ValueError: As `clip_range`, and for an axis that w does not have.

    Example:
        >>> import qmath
        >>> low, high = qmath.weight_range([[0.1, -0.4], [2.0, 3.0]], bits=8, method="max")
        >>> low.tolist(), high.tolist()
        ([-0.4, 0.0], [0.1, 3.0])
    """
    shape = GridShape(bits=as_bit_count(bits))
    chosen = _lookup(method)
    rows = _rows(w, axis)
    low, high = np.zeros(rows.shape[0]), np.zeros(rows.shape[0])
    if method == "mse" and not options:
        from qmath.kernels import stop_loss as stop_loss_kernels

        sides = [np.sort(np.maximum(side, 0), axis=1) for side in (rows, -rows)]
        over_threads(stop_loss_kernels.best_ranges, len(rows), 16, *sides, shape.steps, False, RELATIVE_GAP, low, high)
    else:
        for i in np.flatnonzero(rows.any(axis=1)):
            low[i], high[i] = _spanning(shape, *_call(chosen, method, sample_of(rows[i]), shape, options))
    return (low, high) if axis is not None else (np.asarray(low[0]), np.asarray(high[0]))


def _lookup(method: str) -> ClipMethod:
    check_choice(method, "method", _METHODS)
    return _METHODS[method]


def _call(
    method: ClipMethod, name: str, sample: Sample, shape: GridShape, options: dict[str, Any]
) -> tuple[float, float]:
    try:
        return method(sample, shape, **options)
    except TypeError as error:
        if options and "keyword argument" in str(error):
            raise ValueError(f"clip method '{name}' does not know the options {sorted(options)}: {error}") from error
        raise


def _spanning(shape: GridShape, low: float, high: float) -> tuple[float, float]:
    """The range that a grid of this shape spans: with zero, and mirrored or cut at zero as the shape requires."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if shape.symmetric:
        high = max(-low, high)
        low = -high
    elif shape.one_sided:
        low = 0.0
        if high == 0.0:
            raise ValueError("no positive value: a one-sided grid has nothing to hold")
    return low, high


def _rows(w: ArrayLike, axis: int | None) -> NDArray[np.floating[Any]]:
    """`w` with its channels first and the other axes flattened."""
    values = as_data(w, "w")
    check_finite(values, "w")
    if axis is None:
        return np.ascontiguousarray(values.reshape(1, -1))
    moved = np.moveaxis(values, as_axis(axis, values.ndim), 0)
    return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))


@clip_method("max")
def _max(sample: Sample, shape: GridShape) -> tuple[float, float]:
    return sample.low, sample.high


@clip_method("percentile")
def _percentile(sample: Sample, shape: GridShape, *, percentile: float = 99.99) -> tuple[float, float]:
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile must lie in (50, 100], found {percentile}")
    if shape.symmetric:
        high = _quantile(*_magnitudes(sample), percentile / 100)
        return -high, high
    positions = sample.points if sample.edges is None else sample.edges
    tail = 1 - percentile / 100
    return _quantile(positions, sample.weights, tail), _quantile(positions, sample.weights, 1 - tail)


def _magnitudes(sample: Sample) -> tuple[Floats, Floats]:
    """|x| in ascending order, as (points or edges, weights)."""
    if sample.edges is None:
        return np.sort(np.abs(sample.points)), sample.weights
    edges = np.unique(np.abs(np.append(sample.edges, 0.0)))
    below = np.concatenate(([0.0], np.cumsum(sample.weights)))
    both = np.interp(edges, sample.edges, below) - np.interp(-edges, sample.edges, below)
    return edges, np.diff(both)


def _quantile(positions: Floats, weights: Floats, q: float) -> float:
    """Linear quantile of sorted points (as numpy.quantile), or of bins between edges with evenly spread mass."""
    if positions.size == weights.size:
        return float(np.quantile(positions, q))
    below = np.concatenate(([0.0], np.cumsum(weights)))
    return float(np.interp(q * below[-1], below, positions))


@clip_method("mse")
def _mse(sample: Sample, shape: GridShape) -> tuple[float, float]:
    stop_loss = StopLoss.of(sample)
    if shape.one_sided and sample.high <= 0:
        return 0.0, 0.0
    step, above, below = stop_loss.best_grid(shape.steps, symmetric=shape.symmetric, one_sided=shape.one_sided)
    return 0.0 - step * below, step * above


@clip_method("kl")
def _kl(sample: Sample, shape: GridShape, *, bins: int = KL_BINS) -> tuple[float, float]:
    from qmath.kernels import clip as clip_kernels

    edges, counts = _bins_from_zero(sample, shape, bins)
    zero = int(np.searchsorted(edges, 0.0))
    levels = shape.steps // 2 + 1 if shape.symmetric else shape.steps + 1
    two_ended = not shape.symmetric and not shape.one_sided
    low, high = clip_kernels.best_window(counts, levels, min(zero, counts.size - 1), two_ended)
    return (-float(edges[high]) if shape.symmetric else float(edges[low])), float(edges[high])


def _bins_from_zero(sample: Sample, shape: GridShape, bins: int) -> tuple[Floats, Floats]:
    """Histogram of |x| (symmetric), of x > 0 (one-sided) or of x: the given bins, or `bins` on each side of zero.

    The bin that starts at zero is capped at the count of its fuller neighbour: zero is a level, so the spike that a
    ReLU puts there costs nothing, yet it would outweigh everything else in the divergence.
    """
    if sample.edges is not None:
        edges, counts = _magnitudes(sample) if shape.symmetric else (sample.edges, sample.weights)
        inside = edges[:-1] >= 0 if shape.one_sided else np.ones(counts.size, bool)
        edges, counts = np.append(edges[:-1][inside], edges[-1]), counts[inside].copy()
    else:
        x = np.abs(sample.points) if shape.symmetric else sample.points
        width = float(np.abs(x).max()) / bins
        first = 0 if shape.one_sided else min(int(np.floor(x.min() / width)), 0)
        last = max(int(np.ceil(x.max() / width)), 1)
        edges = np.arange(first, last + 1, dtype=np.float64) * width
        edges[-1] = max(edges[-1], float(x.max()))
        counts = np.histogram(x, edges)[0].astype(np.float64)
    zero = int(np.searchsorted(edges, 0.0))
    neighbours = counts[max(zero - 1, 0) : zero + 2 : 2] if zero else counts[1:2]
    if zero < counts.size and neighbours.any():
        counts[zero] = min(counts[zero], neighbours.max())
    return edges, counts


@clip_method("aciq")
def _aciq(sample: Sample, shape: GridShape, *, family: str | None = None) -> tuple[float, float]:
    families: dict[str | None, tuple[type[Prior], ...]] = {
        "laplace": (Laplace,),
        "gaussian": (Gaussian,),
        None: FAMILIES,
    }
    if family not in families:
        raise ValueError(f"family must be 'laplace', 'gaussian' or None, found {family!r}")
    stop_loss = StopLoss.of(sample)
    if shape.symmetric and sample.low < 0:
        scales = {Laplace: stop_loss.above.mean + stop_loss.below.mean, Gaussian: np.sqrt(stop_loss.energy)}
        clips = [prior_clip(kind(0.0, scales[kind]), shape.bits) for kind in families[family]]
        ends = [(-float(clip), float(clip)) for clip in clips]
    else:  # a symmetric grid uses only its upper half
        bits, one_sided = np.array([shape.bits - shape.symmetric]), np.array([shape.symmetric or shape.one_sided])
        low, high = candidates(Moments.of(stop_loss), bits, one_sided, families[family])
        ends = list(zip(low[0].tolist(), high[0].tolist(), strict=True))
    return min(ends, key=lambda pair: stop_loss.error(*shape.split(*_spanning(shape, *pair))))
