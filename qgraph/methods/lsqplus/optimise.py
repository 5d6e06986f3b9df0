"""Stochastic gradient descent on one flat vector, in place."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qgraph.methods.lsqplus.weight_quantizer import Floats


class Optimiser(Protocol):
    """Moves values against a gradient; `state` is all that it remembers."""

    state: dict[str, Floats]

    def update(self, values: Floats, gradient: Floats, rate: Floats, step: int) -> None:
        """Step number `step` (from 1), with a rate for every value."""


class Sgd:
    """v = momentum v + g; w -= rate v."""

    def __init__(self, size: int, *, momentum: float = 0.9) -> None:
        self.momentum = np.float32(momentum)
        self.state = {"velocity": np.zeros(size, np.float32)}

    def update(self, values: Floats, gradient: Floats, rate: Floats, step: int) -> None:
        velocity = self.state["velocity"]
        velocity *= self.momentum
        velocity += gradient
        values -= rate * velocity


class Adam:
    """m and v are running means of g and g^2, without bias: w -= rate m / (sqrt(v) + epsilon) (Kingma and Ba, 2015)."""

    def __init__(self, size: int, *, momentum: float = 0.9, second: float = 0.999, epsilon: float = 1e-12) -> None:
        self.momentum, self.second, self.epsilon = momentum, second, np.float32(epsilon)
        self.state = {"mean": np.zeros(size, np.float32), "square": np.zeros(size, np.float32)}

    def update(self, values: Floats, gradient: Floats, rate: Floats, step: int) -> None:
        mean, square = self.state["mean"], self.state["square"]
        mean += np.float32(1 - self.momentum) * (gradient - mean)
        square += np.float32(1 - self.second) * (gradient * gradient - square)
        unbias = np.float32(math.sqrt(1 - self.second**step) / (1 - self.momentum**step))
        values -= rate * unbias * mean / (np.sqrt(square) + self.epsilon)


def cosine(step: int, steps: int, *, warmup: float) -> float:
    """The share of the first rate at `step` of 0..steps-1: up in a line over a share `warmup`, then half a cosine."""
    rising = warmup * steps
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def decayed(values: Floats, rate: Floats, decay: float, on: NDArray[np.bool_]) -> None:
    """Weight decay apart from the gradient: w -= rate decay w where `on`, in place (Loshchilov and Hutter, 2019)."""
    if decay:
        values -= np.where(on, rate * np.float32(decay), np.float32(0)) * values
