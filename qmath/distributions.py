"""Laplace and Gaussian priors of a tensor, two-sided or rectified by a ReLU: densities and partial moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

from qmath._content import ByContent, frozen
from qmath._validation import as_parameter
from qmath.estimators import GAUSSIAN, LAPLACE, Estimators
from qmath.late import LateModule
from qmath.sample import Floats

special = LateModule("scipy.special")
SQRT2 = float(np.sqrt(2.0))
SQRT2PI = float(np.sqrt(2.0 * np.pi))


@dataclass(frozen=True, slots=True, eq=False)
class Prior(ByContent, ABC):
    """A location-scale distribution Z = loc + scale * U, or its rectified form X = max(Z, 0) when `one_sided`.

    The rectified distribution is that of a ReLU's output: the probability of Z <= 0 becomes an atom at exactly zero,
    and the density of Z is kept, unscaled, for x > 0. With loc = 0 the atom weighs one half: the setting of ACIQ's
    fused ReLU (A.17-A.19). Use it through `qmath.Laplace` and `qmath.Gaussian`.

    `loc` and `scale` are in the units of x; scalars, or arrays that broadcast together (one distribution per channel).

    Raises:
        ValueError: Unless loc is finite, and scale finite and positive.

    Example:
        >>> import qmath
        >>> round(float(qmath.Gaussian(0.0, 2.0, one_sided=True).cdf(0.0)), 4)
        0.5
    """

    estimators: ClassVar[Estimators]
    loc: Any = 0.0
    scale: Any = 1.0
    one_sided: bool = False

    def __post_init__(self) -> None:
        for name in ("loc", "scale"):
            value = as_parameter(getattr(self, name), f"{type(self).__name__} {name}", positive=name == "scale")
            object.__setattr__(self, name, frozen(value) if value.ndim else float(value))
        np.broadcast_shapes(np.shape(self.loc), np.shape(self.scale))

    def pdf(self, x: ArrayLike) -> Floats:
        """Return the density at x; for a one-sided prior that of the part above zero (the atom at zero has none).

        `x` broadcasts with loc and scale; the density is per unit of x.

        Example:
            >>> import qmath
            >>> qmath.Laplace(0.0, 0.5).pdf([-1.0, 0.0]).round(4).tolist()
            [0.1353, 1.0]
        """
        x = np.asarray(x, dtype=np.float64)
        density = self.unit_pdf((x - self.loc) / self.scale) / self.scale
        return np.where(x > 0, density, 0.0) if self.one_sided else np.asarray(density)

    def cdf(self, x: ArrayLike) -> Floats:
        """Return P(X <= x), the atom at zero included when one-sided; `x` broadcasts with loc and scale.

        Example:
            >>> import qmath
            >>> qmath.Gaussian().cdf([0.0, 1.96]).round(3).tolist()
            [0.5, 0.975]
        """
        x = np.asarray(x, dtype=np.float64)
        below = self.unit_tail(-(x - self.loc) / self.scale, 0)
        return np.where(x >= 0, below, 0.0) if self.one_sided else np.asarray(below)

    def sf(self, x: ArrayLike) -> Floats:
        """Return P(X > x), accurate far in the tail where 1 - cdf(x) is not; `x` broadcasts with loc and scale.

        Example:
            >>> import qmath
            >>> f"{float(qmath.Gaussian().sf(10.0)):.3g}"
            '7.62e-24'
        """
        x = np.asarray(x, dtype=np.float64)
        above = self.unit_tail((x - self.loc) / self.scale, 0)
        return np.where(x >= 0, above, 1.0) if self.one_sided else np.asarray(above)

    @property
    def positive_mass(self) -> Floats:
        """P(Z > 0): the mass of a rectified distribution that is not in the atom at zero."""
        return self.unit_tail(-np.asarray(self.loc) / self.scale, 0)

    def sample(self, size: int | tuple[int, ...], *, seed: int | np.random.Generator) -> Floats:
        """Draw independent values of shape `size`, which must broadcast with loc and scale; a seed fixes the draws.

        Example:
            >>> import qmath
            >>> x = qmath.Laplace(one_sided=True).sample(1000, seed=0)
            >>> x.shape, float(x.min())
            ((1000,), 0.0)
        """
        drawn = self.loc + self.scale * self._unit_sample(np.random.default_rng(seed), size)
        return np.maximum(drawn, 0.0) if self.one_sided else np.asarray(drawn)

    @classmethod
    def fit(
        cls,
        data: Any,
        *,
        one_sided: bool = False,
        method: Literal["likelihood", "moments"] = "likelihood",
        loc: float | None = None,
    ) -> Self:
        """Fit a member of the family to an array or a histogram; see `qmath.estimators` for the formulas.

        `method` is "likelihood" or "moments"; `loc` fixes the location.

        Raises:
            ValueError: For empty, non-finite or all-equal data, and for negative values with `one_sided`.

        Example:
            >>> import qmath
            >>> qmath.Laplace.fit([0.0, 1.0, 5.0])
            Laplace(loc=1.0, scale=1.6666666666666667, one_sided=False)
        """
        fitted_loc, scale = cls.estimators(data, one_sided=one_sided, method=method, loc=loc)
        return cls(fitted_loc, scale, one_sided)

    @staticmethod
    @abstractmethod
    def unit_pdf(u: ArrayLike) -> Floats:
        """Density of the unit distribution (loc 0, scale 1), symmetric about zero."""

    @staticmethod
    @abstractmethod
    def unit_tail(u: ArrayLike, order: Literal[0, 1, 2]) -> Floats:
        """E[(U - u)_+^order] of the unit distribution: survival function, stop-loss transform, squared excess.

        Example:
            >>> import qmath
            >>> [float(qmath.Laplace.unit_tail(0.0, order)) for order in (0, 1, 2)]
            [0.5, 0.5, 1.0]
        """

    @staticmethod
    @abstractmethod
    def _unit_sample(rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats: ...


@dataclass(frozen=True, slots=True, eq=False)
class Laplace(Prior):
    """The Laplace distribution, f(x) = exp(-|x - loc| / scale) / (2 scale); `scale` is the b of ACIQ.

    Its variance is 2 b^2. Arguments and errors as for `qmath.Prior`.

    Example:
        >>> import qmath
        >>> round(float(qmath.Laplace(0.0, 1.0).sf(3.0)), 4)
        0.0249
    """

    estimators = LAPLACE

    @staticmethod
    def unit_pdf(u: ArrayLike) -> Floats:
        return np.asarray(0.5 * np.exp(-np.abs(np.asarray(u, dtype=np.float64))))

    @staticmethod
    def unit_tail(u: ArrayLike, order: Literal[0, 1, 2]) -> Floats:
        u = np.asarray(u, dtype=np.float64)
        right = (0.5, 0.5, 1.0)[order] * np.exp(-np.abs(u))  # the value at |u|
        left = (1.0 - right, right - np.minimum(u, 0), np.minimum(u, 0) ** 2 + 2.0 - right)[order]
        return np.where(u >= 0, right, left)

    @staticmethod
    def _unit_sample(rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        return rng.laplace(size=size)


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian(Prior):
    """The Gaussian distribution, f(x) = exp(-(x - loc)^2 / (2 scale^2)) / (scale sqrt(2 pi)); `scale` is sigma.

    Arguments and errors as for `qmath.Prior`.

    Example:
        >>> import qmath
        >>> round(float(qmath.Gaussian(0.0, 1.0).sf(3.0)), 4)
        0.0013
    """

    estimators = GAUSSIAN

    @staticmethod
    def unit_pdf(u: ArrayLike) -> Floats:
        return np.asarray(np.exp(-0.5 * np.asarray(u, dtype=np.float64) ** 2) / SQRT2PI)

    @staticmethod
    def unit_tail(u: ArrayLike, order: Literal[0, 1, 2]) -> Floats:
        """E[(U - u)_+^order]: for u >= 0 the density times a function of Mills' ratio, which never turns negative."""
        u = np.asarray(u, dtype=np.float64)
        right = Gaussian._right_tail(np.abs(u), order)
        left = (1.0 - right, right - np.minimum(u, 0), np.minimum(u, 0) ** 2 + 1.0 - right)[order]
        return np.where(u >= 0, right, left)

    @staticmethod
    def _right_tail(u: Floats, order: int) -> Floats:
        """phi(u) J_k(u): J_0 = erfcx(u / sqrt 2) sqrt(pi / 2) is Mills' ratio, J_1 = 1 - u J_0, J_2 = J_0 - u J_1.

        From u = 4 on these differences would cancel; there the ratios r_k = J_k / J_{k-1} = k / (u + r_{k+1}) take
        over, a continued fraction of positive terms.
        """
        u = np.minimum(u, 40.0)  # phi(40) is zero in double precision
        mills = special.erfcx(u / SQRT2) * SQRT2PI / 2
        factor = mills
        if order:
            first = 1.0 - u * mills
            factor = (first, mills - u * first)[order - 1]
            far = u >= 4.0
            if np.any(far):
                ratio_1, ratio_2 = Gaussian._tail_ratios(u[far])
                factor = np.array(factor)
                factor[far] = mills[far] * ratio_1 * (ratio_2 if order == 2 else 1.0)
        return np.asarray(np.exp(-0.5 * u * u) / SQRT2PI * factor)

    @staticmethod
    def _tail_ratios(u: Floats) -> tuple[Floats, Floats]:
        """(J_1 / J_0, J_2 / J_1) for u >= 4, accurate to rounding."""
        ratio = (np.sqrt(u * u + 120.0) - u) / 2  # r_30, taken as equal to r_31
        for k in range(29, 1, -1):
            ratio = k / (u + ratio)
        return 1.0 / (u + ratio), ratio

    @staticmethod
    def _unit_sample(rng: np.random.Generator, size: int | tuple[int, ...]) -> Floats:
        return rng.standard_normal(size=size)


class HasPrior(Protocol):
    """A result that says which prior it is about, such as `qmath.PriorFit`."""

    @property
    def prior(self) -> Prior: ...


def as_prior(prior: Prior | HasPrior) -> Prior:
    """The prior that a caller means: itself, or that of a fit; TypeError for anything else."""
    inner = getattr(prior, "prior", prior)
    if isinstance(inner, Prior):
        return inner
    kind = "None" if prior is None else type(prior).__name__
    raise TypeError(f"prior: expected a qmath.Laplace or qmath.Gaussian, or a fit of fit_prior, found {kind}")
