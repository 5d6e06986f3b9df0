"""Bayesian optimisation of one or two numbers: the only importer of bayes_opt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from bayes_opt import BayesianOptimization

Point = Mapping[str, float]


class Optimizer:
    """A Gaussian process over a box that is told values and asked for the next point (Algorithm 1: BO)."""

    def __init__(self, bounds: Mapping[str, tuple[float, float]], *, seed: int) -> None:
        self._process = BayesianOptimization(
            f=None, pbounds=dict(bounds), random_state=seed, verbose=0, allow_duplicate_points=True
        )

    def tell(self, point: Point, value: float) -> None:
        """BO.probe: the value at a point; the largest is sought."""
        self._process.register(params=dict(point), target=value)

    def ask(self) -> dict[str, float]:
        """The point that promises most."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the process warns whenever a length scale reaches its bound
            return {name: float(value) for name, value in self._process.suggest().items()}
