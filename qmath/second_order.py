"""Rounding of a weight matrix that minimises the error of the outputs rather than that of the weights.

Let x be what a quantized layer reads and y what the float layer computes. A row q of weights on a grid makes the error

    E[(q x - y)^2] = (q - w) H (q - w)^T + const,    H = E[x x^T],    w = t H^-1,    t = E[y x^T]                    (1)

so the row to round is the least-squares solution w, which already undoes what it can of the errors in x, and the price
of an error is the quadratic form of H. With moments about the mean, (1) holds for the error up to a constant shift,
which belongs in the bias. From few samples, w is kept near the float weights w0 by a ridge (`aimed_weights`),

    w = (t + r w0) (H + r I)^-1,

whose r is the one that serves best on samples that it was not found on; rounding adds a small one of its own to H
(`damping`). Columns are rounded one after the other. If the first j are fixed with an error e_j in the last of them,
the others minimise (1) by moving along row j of U (optimal brain surgeon, Hassibi and Stork, 1993; all eliminations in
one Cholesky factor: GPTQ, Frantar et al., 2022):

    w_k <- w_k - (e_j / U_jj) U_jk   for k > j,      H^-1 = U^T U,  U upper triangular                               (2)

This is Babai's nearest-plane rounding on the lattice of the grid. It looks at every code once and only ahead;
afterwards single codes move, by whole steps, as long as that lowers (1). Row by row the result is kept only if it beats
rounding to nearest in (1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qmath._content import ByContent
from qmath._validation import as_parameter, check_choice
from qmath.grid import Grid
from qmath.kernels.threads import over_threads
from qmath.moments import Moments

Floats = NDArray[np.float64]
Order = Literal["activity", "given"]
"""Which columns are rounded first: those of the largest diagonal of H, or those of the lowest index."""

_GRAIN = 4  # rows, at least, for a thread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecondOrderRounding(ByContent):
    """Codes of a weight on its grid, with the scale that they were chosen for.

    `codes` has the shape of the weight. Row c of the weight becomes gain_c factor_c scale (codes - zero_point): the
    grid with `factor` times its scale, then rescaled by `gain`. `error` is the quadratic form (1) of every row, less
    its constant, and `nearest_error` that of rounding to nearest; both in the squared units of the outputs.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> grid = qmath.Grid(2, 1.0)
        >>> found = qmath.round_second_order([[0.4, 0.4]], np.ones((2, 2)), grid)
        >>> found.codes.tolist(), bool(found.error[0] < found.nearest_error[0])
        ([[0, 1]], True)
    """

    codes: NDArray[Any]
    factor: Floats
    gain: Floats
    error: Floats
    nearest_error: Floats


def round_second_order(
    weight: ArrayLike,
    hessian: ArrayLike,
    grid: Grid,
    *,
    aim: ArrayLike | None = None,
    damping: float = 0.01,
    order: Order = "activity",
    factors: Sequence[float] = (1.0,),
    refit: bool = False,
    sweeps: int = 20,
) -> SecondOrderRounding:
    """Round a weight column after column, passing every error on to the columns to come (Eq. 1 and 2 of the module).

    Args:
        weight: float weights of C outputs, shape (C, ...); what follows the first axis are the K products of a row.
        hessian: H = E[x x^T], shape (K, K), in the squared units of x; or (G, K, K) for G groups of C / G rows, as of
            a grouped or depthwise convolution. Moments about the mean leave a constant error to the bias.
        grid: any grid that fits the weight: per tensor, per row or in groups, symmetric or with zero points.
        aim: the rows w of Eq. 1, shape (C, K), where they are not the weight itself (`aimed_weights`).
        damping: the ridge on H, as a share of the mean of its diagonal.
        order: "activity" rounds the columns of the largest diagonal first, "given" keeps their order.
        factors: multiples of the scale to try; every row takes the best.
        refit: whether every row is rescaled by its least-squares `gain`.
        sweeps: the most rounds of descent over single codes.

    Returns:
        The codes and their errors. No row has a larger error than rounding to nearest.

    Raises:
        ValueError: For shapes that do not fit, a damping below zero, and an H that is not positive semidefinite.
        TypeError: For anything but real numbers.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(1000, 8)) @ rng.normal(size=(8, 8))
        >>> weight = rng.normal(size=(4, 8))
        >>> found = qmath.round_second_order(weight, x.T @ x / 1000, qmath.Grid(3, 0.8))
        >>> bool(found.error.sum() < 0.7 * found.nearest_error.sum())
        True
    """
    check_choice(order, "order", get_args(Order))
    given = as_parameter(weight, "weight")
    rows = given.reshape(len(given), -1) if given.ndim > 1 else given
    form = _form(hessian, rows)
    best = rows if aim is None else as_parameter(aim, "aim")
    if best.shape != rows.shape:
        raise ValueError(f"aim: expected shape {rows.shape}, that of the weight's rows, found {best.shape}")
    stretch = as_parameter(factors, "factors", positive=True).reshape(-1)
    problem = _Problem.of(best, form, float(as_parameter(damping, "damping", non_negative=True)), order)
    steps, low, high, zero = _laid(grid, given)
    nearest = np.clip(np.rint(rows / steps), low, high)
    found = _Found(nearest, np.ones(len(rows)), problem.error(nearest * steps))
    reference = found.error
    for factor in stretch:
        codes, error = problem.rounded(factor * steps, low, high, sweeps)
        found = found.or_better(_Found(codes, np.full(len(rows), factor), error))
    values = found.codes * steps * found.factor[:, None]
    gain = problem.gain(values) if refit else np.ones(len(rows))
    return SecondOrderRounding(
        codes=(found.codes + zero).astype(grid.code_dtype).reshape(given.shape),
        factor=found.factor,
        gain=gain,
        error=np.minimum(problem.error(values * gain[:, None]), found.error),
        nearest_error=reference,
    )


def aimed_weights(
    weight: ArrayLike, halves: Sequence[Moments], *, ridges: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0)
) -> Floats:
    """Return the rows that come closest to the targets on the operands, by ridge regression about the weight.

        w = (t + r w0) (H + r I)^-1

    `halves` are the moments of two sets of samples; r is one of `ridges`, as a share of the mean of the diagonal of H.
    It is the one whose rows, found on one half, make the least error on the other; or none serves, and the result is
    the weight itself. `weight` has shape (C, ...), the result (C, K).

    Raises:
        ValueError: For shapes that do not fit, and anything but two halves.

    Example:
        >>> import numpy as np
        >>> import qmath
        >>> rng, halves = np.random.default_rng(0), []
        >>> for x in rng.normal(size=(2, 1000, 3)):
        ...     seen = qmath.MomentsAccumulator()
        ...     seen.update((x + 0.5 * rng.normal(size=x.shape))[None], x @ [[1.0], [2.0], [3.0]])
        ...     halves.append(seen.result())
        >>> qmath.aimed_weights([[1.0, 2.0, 3.0]], halves).round(1).tolist()  # noise in x makes weights smaller
        [[0.8, 1.6, 2.4]]
    """
    given = as_parameter(weight, "weight")
    rows = given.reshape(len(given), -1)
    if len(halves) != 2 or any(half.target.shape != rows.shape for half in halves):
        shapes = [half.target.shape for half in halves]
        raise ValueError(f"halves: expected two Moments with targets of shape {rows.shape}, found {shapes}")
    first, second = halves
    shares = first.count / (first.count + second.count), second.count / (first.count + second.count)
    form = shares[0] * first.hessian + shares[1] * second.hessian
    target = shares[0] * first.target + shares[1] * second.target
    errors = [_misfit(rows, second) + _misfit(rows, first)]
    for ridge in ridges:
        found = [_ridge_rows(rows, half.hessian, half.target, ridge) for half in halves]
        errors.append(_misfit(found[0], second) + _misfit(found[1], first))
    best = int(np.argmin(errors))
    return rows if best == 0 else _ridge_rows(rows, form, target, ridges[best - 1])


def neighbour_moments(variance: ArrayLike, *, taps: int, correlation: float = 0.5) -> Floats:
    """Return an H that is known without data: channels are independent, and the taps of a channel alike.

        H = blockdiag_k  v_k ((1 - rho) I + rho 1 1^T)

    over the taps of every input channel k of variance v_k, shape (channels,), such as BatchNormalization's; rho is the
    correlation of neighbouring pixels. Source: the data-free form of SQuant (Guo et al., 2022), weighted by what each
    channel carries. Returns shape (channels taps, channels taps), taps innermost.

    Raises:
        ValueError: For negative variances, a correlation outside 0..1, or less than one tap.

    Example:
        >>> import qmath
        >>> qmath.neighbour_moments([4.0], taps=2, correlation=0.5).tolist()
        [[4.0, 2.0], [2.0, 4.0]]
    """
    spread = as_parameter(variance, "variance", non_negative=True).reshape(-1)
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation: expected a number in 0..1, found {correlation}")
    if taps < 1:
        raise ValueError(f"taps: expected at least 1, found {taps}")
    kernel = (1 - correlation) * np.eye(taps) + correlation
    return np.asarray(np.kron(np.diag(spread), kernel), np.float64)


@dataclass(frozen=True, slots=True)
class _Found:
    """Codes without zero points, the factor of the scale, and the error of every row."""

    codes: Floats
    factor: Floats
    error: Floats

    def or_better(self, other: _Found) -> _Found:
        """Row by row, the one with the smaller error."""
        better = other.error < self.error
        return _Found(
            np.where(better[:, None], other.codes, self.codes),
            np.where(better, other.factor, self.factor),
            np.where(better, other.error, self.error),
        )


@dataclass(frozen=True, slots=True)
class _Problem:
    """The quadratic form of every group, its columns in the order of rounding, and the rows that are aimed at."""

    hessian: Floats
    best: Floats
    order: NDArray[np.int64]
    sorted: Floats
    upper: Floats

    @classmethod
    def of(cls, best: Floats, form: Floats, damping: float, order: Order) -> _Problem:
        diagonal = np.einsum("gkk->gk", form)
        damped = _with_ridge(form, max(damping, 1e-10))
        along = np.argsort(-diagonal, axis=1, kind="stable")
        if order == "given":
            along = np.broadcast_to(np.arange(form.shape[1]), along.shape)
        in_order = np.take_along_axis(np.take_along_axis(damped, along[:, :, None], 1), along[:, None, :], 2)
        return cls(damped, best, along, in_order, _inverse_factor(in_order))

    def error(self, values: Floats) -> Floats:
        away = values - self.best
        return np.asarray(np.einsum("rk,rk->r", _times(away, self.hessian), away))

    def gain(self, values: Floats) -> Floats:
        """The factor of every row at which it is closest to the best: (v H w) / (v H v)."""
        power = np.einsum("rk,rk->r", _times(values, self.hessian), values)
        fit = np.einsum("rk,rk->r", _times(values, self.hessian), self.best)
        found = np.divide(fit, power, out=np.ones_like(fit), where=power > 0)
        return np.where(found > 0, found, 1.0)

    def rounded(self, steps: Floats, low: Floats, high: Floats, sweeps: int) -> tuple[Floats, Floats]:
        """The codes that Eq. 2 and the descent find on a grid, and the error of every row."""
        from qmath.kernels import second_order as kernels

        along = np.repeat(self.order, len(steps) // len(self.order), axis=0)
        best, step, lowest, highest = (
            np.ascontiguousarray(np.take_along_axis(np.broadcast_to(part, along.shape), along, 1))
            for part in (self.best, steps, low, high)
        )
        codes = np.empty_like(best)
        over_threads(kernels.round_columns, len(codes), _GRAIN, self.upper, best.copy(), step, lowest, highest, codes)
        slope = _times(codes * step - best, self.sorted)
        over_threads(kernels.descend, len(codes), _GRAIN, self.sorted, slope, step, lowest, highest, codes, sweeps)
        error = np.einsum("rk,rk->r", slope, codes * step - best)  # the descent keeps the slope up to date
        result = np.empty_like(codes)
        np.put_along_axis(result, along, codes, 1)
        return result, error


def _form(hessian: ArrayLike, rows: Floats) -> Floats:
    form = as_parameter(hessian, "hessian")
    form = form[None] if form.ndim == 2 else form
    if rows.ndim != 2 or form.ndim != 3 or form.shape[1:] != 2 * rows.shape[1:] or len(rows) % len(form):
        raise ValueError(
            f"hessian: expected shape (K, K), or (G, K, K) with C a multiple of G, for a weight of C x K "
            f"{rows.shape}, found {np.shape(hessian)}"
        )
    return np.ascontiguousarray((form + form.transpose(0, 2, 1)) / 2)


def _laid(grid: Grid, weight: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Step, lowest and highest code less zero point, and zero point of every weight, as rows."""
    granularity, shape = grid.granularity, (len(weight), weight.size // len(weight))

    def lay(parameter: ArrayLike) -> Floats:
        laid = granularity.lay(parameter, weight.shape) if np.size(parameter) > 1 else np.asarray(parameter)
        return np.broadcast_to(np.asarray(laid, np.float64), weight.shape).reshape(shape)

    low, high = grid.limits
    zero = lay(grid.zero_point)
    return lay(grid.scale), lay(low) - zero, lay(high) - zero, zero


def _times(rows: Floats, form: Floats) -> Floats:
    """Every row times the form of its group."""
    grouped = rows.reshape(len(form), -1, rows.shape[1])
    return np.asarray(np.matmul(grouped, form)).reshape(rows.shape)


def _with_ridge(form: Floats, share: float) -> Floats:
    """H + r I of every group, r being a share of the mean of the diagonal of H; the identity where H is zero."""
    level = np.einsum("gkk->g", form) / form.shape[1]
    ridge = np.where(level > 0, share * level, 1.0)
    return form + ridge[:, None, None] * np.eye(form.shape[1])


def _inverse_factor(form: Floats) -> Floats:
    """U with H^-1 = U^T U: the inverse of the upper triangular R with H = R R^T."""
    try:
        reverse = np.linalg.cholesky(form[:, ::-1, ::-1])[:, ::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError("hessian: expected a positive semidefinite matrix; raise the damping") from None
    from scipy.linalg import lapack

    upper = np.empty_like(form)
    for group, factor in enumerate(reverse):
        upper[group] = np.triu(lapack.dtrtri(factor)[0])
    return upper


def _ridge_rows(rows: Floats, form: Floats, target: Floats, share: float) -> Floats:
    """(t + r w0) (H + r I)^-1 = w0 + (t - w0 H) (H + r I)^-1."""
    grouped = (target - _times(rows, form)).reshape(len(form), -1, rows.shape[1])
    ridged, aims = _with_ridge(form, share), grouped.transpose(0, 2, 1)
    if len(ridged) > 1:
        moved = np.linalg.solve(ridged, aims)
    else:  # half the time of a general matrix
        from scipy.linalg import cho_factor, cho_solve

        moved = cho_solve(cho_factor(ridged[0], check_finite=False), aims[0], check_finite=False)[None]
    return rows + moved.transpose(0, 2, 1).reshape(rows.shape)


def _misfit(rows: Floats, seen: Moments) -> float:
    """The error (1) of rows on the samples of these moments, less a constant."""
    return float(np.sum(rows * (_times(rows, seen.hessian) - 2 * seen.target)))
