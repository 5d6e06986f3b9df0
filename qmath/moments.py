"""Second moments of what a layer reads, and of it with what the layer should compute, summed up batch by batch.

They are all that least squares and second-order rounding (`qmath.round_second_order`) need to know about samples:

    H = E[x x^T] - E[x] E[x]^T,    t = E[y x^T] - E[y] E[x]^T

For a convolution, x are patches; it is enough to look at some positions of every image, since H is an average over all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent
from qmath._validation import as_data, as_parameter, check_finite

Floats = NDArray[np.float64]
_NOISE = 8.0  # roundings that sums of products may be away from their true values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments(ByContent):
    """Moments about the mean of operands x, in G groups of K products, with targets y of C outputs.

    `hessian` has shape (G, K, K) and `target` (C, K), those of the group of every output; `mean` (G, K), `target_mean`
    and `target_variance` (C,). `count` is the number of operands seen, or the sum of their weights. Of operands that do
    not vary, beyond the rounding of their numbers, `hessian` and `target` are zero.

    Example:
        >>> import qmath
        >>> seen = qmath.MomentsAccumulator()
        >>> seen.update([[[1.0], [3.0]]], [[2.0], [6.0]])
        >>> found = seen.result()
        >>> found.hessian.tolist(), found.target.tolist(), found.mean.tolist()
        ([[[1.0]]], [[2.0]], [[2.0]])
    """

    hessian: Floats
    target: Floats
    mean: Floats
    target_mean: Floats
    target_variance: Floats
    count: float

    @property
    def is_finite(self) -> bool:
        """Whether no square overflowed."""
        return bool(np.isfinite(self.hessian).all() and np.isfinite(self.target).all())

    def joined(self, other: Moments) -> Moments:
        """Return the moments of the samples of both."""
        share = self.count / (self.count + other.count)
        apart, aims = self.mean - other.mean, self.target_mean - other.target_mean
        between, shared = share * (1 - share), np.repeat(apart, len(aims) // len(apart), axis=0)

        def both(name: str, difference: Floats | float = 0.0) -> Floats:
            parts = share * getattr(self, name) + (1 - share) * getattr(other, name)
            return np.asarray(parts + between * difference)

        return Moments(
            hessian=both("hessian", apart[:, :, None] * apart[:, None, :]),
            target=both("target", aims[:, None] * shared),
            mean=both("mean"),
            target_mean=both("target_mean"),
            target_variance=both("target_variance", aims**2),
            count=self.count + other.count,
        )


class MomentsAccumulator:
    """Sums up `Moments`, about a point near the mean so that nothing cancels; memory is that of the moments.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> seen = qmath.MomentsAccumulator()
        >>> for batch in np.arange(12.0).reshape(2, 1, 6, 1):
        ...     seen.update(batch, batch[0])
        >>> round(float(seen.result().hessian[0, 0, 0]), 3)  # the variance of 0..11
        11.917
    """

    def __init__(self) -> None:
        self.count = 0.0
        self._about: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None

    def update(self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> None:
        """Take in n operands x, shape (G, n, K), and as many targets y, shape (n, C), C a multiple of G.

        With `weights`, shape (n,), a pair counts as often as its weight says.

        Raises:
            ValueError: For shapes that do not fit one another or an earlier batch, empty arrays, weights below
                zero, NaN and infinities.
            TypeError: For anything but real numbers.
        """
        operands, targets = as_data(x), as_data(y, "y")
        check_finite(operands, "x")
        check_finite(targets, "y")
        if operands.ndim != 3 or targets.ndim != 2 or operands.shape[1] != len(targets):
            raise ValueError(f"x, y: expected shapes (G, n, K) and (n, C), found {operands.shape} and {targets.shape}")
        groups, count, columns = operands.shape
        if targets.shape[1] % groups:
            raise ValueError(f"y: expected a number of outputs that {groups} groups divide, found {targets.shape[1]}")
        if self._about is None:
            self._about = operands.mean(axis=1, keepdims=True), targets.mean(axis=0)
            self._products = np.zeros((groups, columns, columns))
            self._cross = np.zeros((groups, targets.shape[1] // groups, columns))
            self._sums, self._of_targets = np.zeros((groups, columns)), np.zeros((2, targets.shape[1]))
        if self._sums.shape != (groups, columns) or self._of_targets.shape[1] != targets.shape[1]:
            raise ValueError(
                f"x, y: expected shapes like those of earlier batches, found {operands.shape} and {targets.shape}"
            )
        moved = np.subtract(operands, self._about[0], order="C")
        aims = targets - self._about[1]
        times = np.ones(count) if weights is None else _times(weights, count)
        self._sums += np.matmul(times, moved)
        self._of_targets += times @ aims, times @ np.square(aims, dtype=np.float64)
        if weights is not None:
            root = np.sqrt(times).astype(moved.dtype)[:, None]
            moved, aims = moved * root, aims * root
        by_group = aims.reshape(count, groups, -1).transpose(1, 2, 0)
        self._products += np.matmul(moved.transpose(0, 2, 1), moved)
        self._cross += np.matmul(np.ascontiguousarray(by_group), moved)
        self.count += float(times.sum())

    def result(self) -> Moments:
        """Return the moments of everything taken in.

        Raises:
            ValueError: When nothing was taken in.
        """
        if self._about is None or not self.count:
            raise ValueError("no operand was taken in: call update first, with weights above zero")
        mean = self._sums / self.count
        aim, square = self._of_targets / self.count
        shared = np.repeat(mean, len(aim) // len(mean), axis=0)
        hessian = self._products / self.count - mean[:, :, None] * mean[:, None, :]
        moves = self._moves(np.einsum("gkk->gk", hessian), mean)
        return Moments(
            hessian=hessian * moves[:, :, None] * moves[:, None, :],
            target=(self._cross.reshape(len(aim), -1) / self.count - aim[:, None] * shared)
            * np.repeat(moves, len(aim) // len(mean), axis=0),
            mean=mean + self._about[0][:, 0],
            target_mean=aim + self._about[1],
            target_variance=np.maximum(square - aim**2, 0.0),
            count=self.count,
        )

    def _moves(self, variance: Floats, mean: Floats) -> NDArray[np.bool_]:
        """Which operands vary by more than the rounding of what was summed up; H of the others need not be positive."""
        assert self._about is not None
        about = self._about[0][:, 0]
        unit = float(np.finfo(np.result_type(about, np.float32)).eps)
        return variance > _NOISE * unit * (np.square(mean) + unit * np.square(about, dtype=np.float64))


def _times(weights: ArrayLike, count: int) -> Floats:
    times = as_parameter(weights, "weights", non_negative=True)
    if times.shape != (count,):
        raise ValueError(f"weights: expected shape ({count},), one for each operand, found {times.shape}")
    return times
