"""Bayesian optimisation of one or two numbers; the only module that imports bayes_opt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import UpperConfidenceBound
from threadpoolctl import threadpool_limits

Point = Mapping[str, float]
KAPPA = 2.576  # the default of bayes_opt
NOISE = 1e-3  # variance of a measured value, relative to the variance between points


class _Brief(UpperConfidenceBound):
    """The upper confidence bound, maximised with less effort, which is enough for one or two dimensions."""

    def suggest(self, gp: Any, target_space: Any, *_: Any, random_state: Any = None, **__: Any) -> Any:
        return super().suggest(gp, target_space, n_random=2000, n_smart=2, fit_gp=True, random_state=random_state)


class Optimizer:
    """A Gaussian process over a box that is told values and asked for the next point (Algorithm 1: BO).

    Values are measured on samples and therefore noisy: the process passes near them, not through them.
    """

    def __init__(self, bounds: Mapping[str, tuple[float, float]], *, seed: int) -> None:
        self._process = BayesianOptimization(
            f=None, pbounds=dict(bounds), random_state=seed, verbose=0, acquisition_function=_Brief(kappa=KAPPA)
        )
        self._process.set_gp_params(alpha=NOISE, n_restarts_optimizer=0)
        self._told: set[tuple[float, ...]] = set()

    def tell(self, point: Point, value: float) -> None:
        """Add the value at a point (BO.probe); larger is better."""
        if _key(point) not in self._told:
            self._told.add(_key(point))
            self._process.register(params=dict(point), target=value)

    def ask(self) -> dict[str, float] | None:
        """The most promising point; None if its value is known already."""
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")  # the process warns when a length scale reaches its bound
            point = {name: float(value) for name, value in self._process.suggest().items()}
        return None if _key(point) in self._told else point


def _key(point: Point) -> tuple[float, ...]:
    return tuple(float(point[name]) for name in sorted(point))
