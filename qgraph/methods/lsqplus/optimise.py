"""Stochastic gradient descent on one flat vector, in place."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qgraph.gradient.adam import Adam
from qgraph.methods.lsqplus.config import Optimiser as Kind
from qgraph.methods.lsqplus.weight_quantizer import Floats


class Optimiser(Protocol):
    """Updates values by a gradient; `state` is all that it keeps between steps."""

    state: dict[str, Floats]

    def update(self, x: Floats, gradient: Floats, rate: Floats, step: int) -> None:
        """Update `x` in place at step number `step` (from 1), with a rate for every value."""


class Sgd:
    """Gradient descent with momentum: v = momentum v + g; x -= rate v."""

    def __init__(self, size: int, *, momentum: float) -> None:
        self.momentum = np.float32(momentum)
        self.state = {"velocity": np.zeros(size, np.float32)}

    def update(self, x: Floats, gradient: Floats, rate: Floats, step: int) -> None:
        velocity = self.state["velocity"]
        velocity *= self.momentum
        velocity += gradient
        x -= rate * velocity


def optimiser(kind: Kind, size: int, *, momentum: float) -> Optimiser:
    """The optimiser of this kind for a vector of `size` values.

    Adam's epsilon is small enough for the gradients of scales that thousands of values share.
    """
    if kind == "sgd":
        return Sgd(size, momentum=momentum)
    return Adam(shape=(size,), momentum=momentum, epsilon=1e-12, epsilon_hat=True)


def cosine(step: int, steps: int, *, warmup: float) -> float:
    """The factor of the rate at `step` of 0..steps-1: a linear rise over the share `warmup`, then half a cosine."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def decayed(values: Floats, rate: Floats, decay: float, on: NDArray[np.bool_]) -> None:
    """Decoupled weight decay: w -= rate decay w where `on`, in place (Loshchilov and Hutter, 2019)."""
    if decay:
        values -= np.where(on, rate * np.float32(decay), np.float32(0)) * values
