"""Training of one block: a task that holds all it needs, and what it learned.

The task may run anywhere and gives the same bytes on any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.gradient import Deferred
from qgraph.gradient.adam import Adam
from qgraph.gradient.step import TrainingStep
from qgraph.methods.reconstruct.config import ReconstructConfig
from qgraph.methods.reconstruct.variables import Feeds, Floats, SoftWeight, TrainedGrid

Arrays = Mapping[str, NDArray[np.floating]]
_WARM_UP = 0.1  # of the steps: until then, Adam knows too little of the gradients' sizes
_HARD = 60.0  # the hardness at which `qmath.soft_round` is round


@dataclass(eq=False, kw_only=True)
class Variables:
    """Everything that is learned of a block, by the layer's name or the grid's key."""

    weights: dict[str, SoftWeight]
    biases: dict[str, Floats]
    grids: dict[str, TrainedGrid]

    def feeds(self, hardness: float) -> tuple[Feeds, dict[str, Floats]]:
        """The inputs of the training graph, and the slopes of the weights."""
        found: Feeds = {f"bias:{name}": bias for name, bias in self.biases.items()}
        slopes = {}
        for name, weight in self.weights.items():
            found[f"weight:{name}"], slopes[name] = weight.value(hardness)
        for grid in self.grids.values():
            found |= grid.feeds()
        return found, slopes

    def arrays(self) -> dict[str, Floats]:
        """Everything by name, to be stored."""
        found = {f"weight:{name}": weight.position for name, weight in self.weights.items()}
        found |= {f"bias:{name}": bias for name, bias in self.biases.items()}
        for name, grid in self.grids.items():
            found |= {f"scale:{name}": grid.log_scale, f"zero:{name}": grid.zero_point}
        return found

    def restored(self, arrays: Mapping[str, NDArray[np.floating]]) -> Variables:
        """The variables with what was stored; grids that were not trained are left out."""
        self.grids = {name: grid for name, grid in self.grids.items() if f"scale:{name}" in arrays}
        for name, array in self.arrays().items():
            if name in arrays:
                array[...] = arrays[name]
        return self


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """What enters a block in the quantized and in the float network, and what leaves it in the float network.

    `important` holds how much each position of what leaves counts, with 1 along the axis of channels.
    """

    quantized: Arrays
    floats: Arrays
    targets: Arrays
    important: Arrays

    @property
    def count(self) -> int:
        return len(next(iter(self.targets.values())))


class _Learner:
    """Adam for every array of the variables, each with a rate of its own."""

    def __init__(self, variables: Variables, config: ReconstructConfig) -> None:
        self.variables = variables
        self.config = config
        self.adam: dict[str, Adam] = {}

    def step(
        self,
        gradients: Mapping[str, Floats],
        slopes: Mapping[str, Floats],
        number: int,
        factor: float,
        *,
        loss: float,
        hard: bool,
    ) -> None:
        c, v = self.config, self.variables
        if not hard:
            for name, weight in v.weights.items():
                slope = np.asarray(gradients[f"weight:{name}"], np.float32) * slopes[name]
                pull = weight.pull(number / c.steps, loss)
                slope = slope if pull is None else slope + pull
                rate = weight.rate(c.reach, c.steps) * factor
                self._update(f"weight:{name}", weight.parameter, slope, rate, number)
                weight.constrain()
        for name, bias in v.biases.items():
            if f"bias:{name}" in gradients:
                unit = float(np.sqrt(np.mean(np.square(bias)))) + 1e-6
                self._update(
                    f"bias:{name}", bias, np.asarray(gradients[f"bias:{name}"]), c.rate * unit * factor, number
                )
        for name, grid in v.grids.items():
            if f"step:{name}" in gradients:
                by_scale, by_zero = grid.gradients(gradients)
                self._update(f"scale:{name}", grid.log_scale, by_scale, c.rate * factor, number)
                if not grid.non_negative:
                    self._update(f"zero:{name}", grid.zero_point, by_zero, c.shift_rate * factor, number)

    def _update(self, name: str, x: Floats, gradient: NDArray[np.generic], rate: float, number: int) -> None:
        if name not in self.adam:
            self.adam[name] = Adam(shape=x.shape, epsilon=1e-12, epsilon_hat=True)
        self.adam[name].update(x, np.asarray(gradient, np.float32).reshape(x.shape), np.float32(rate), number)


def train_block(
    graph: Deferred,
    variables: Variables,
    samples: Samples,
    masks: Mapping[str, tuple[int, ...]],
    config: ReconstructConfig,
    *,
    seed: tuple[int, ...],
    threads: int | None = None,
) -> list[float]:
    """Train `variables` in place; returns the loss of every step, per sample.

    `masks` are the sizes of the tensors of trained grids, by their keys; `config` fits the number of samples.
    """
    learner, losses = _Learner(variables, config), []
    last = round(config.steps * (1 - config.settle))
    with TrainingStep(graph, threads=threads or qmath.get_threads()) as step:
        for number in range(1, config.steps + 1):
            rng = np.random.default_rng([*seed, number])
            hard = number > last
            hardness = _HARD if hard else config.hardness * (number / last) ** 2
            if number == last + 1:
                for weight in variables.weights.values():
                    weight.position[...] = weight.codes()
            feeds, slopes = variables.feeds(hardness)
            feeds |= _masks(masks, config.drop, rng)
            chosen = np.sort(rng.choice(samples.count, config.batch, replace=False))
            shards = [_shard(samples, part, config.drop, rng) for part in chosen.reshape(-1, config.shard)]
            loss, gradients = step(feeds, shards)
            losses.append(loss / config.batch)
            factor = (
                min(1.0, number / (_WARM_UP * config.steps)) * math.cos(math.pi / 2 * (number - 1) / config.steps) ** 2
            )
            learner.step(gradients, slopes, number, factor, loss=loss, hard=hard)
    for weight in variables.weights.values():
        weight.position[...] = weight.codes()
    return losses


def _masks(sizes: Mapping[str, tuple[int, ...]], drop: float, rng: np.random.Generator) -> Feeds:
    """Where values are rounded, one mask for all samples of a step."""
    return {
        f"rounded:{name}": _chance((1, *size[1:]), 1 - drop, rng).astype(np.float32) for name, size in sizes.items()
    }


def _chance(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    count = math.prod(shape)
    return (np.frombuffer(rng.bytes(count), np.uint8) < round(share * 256)).reshape(shape)


def _shard(samples: Samples, chosen: NDArray[np.int64], drop: float, rng: np.random.Generator) -> Feeds:
    """Some samples, with a share of what enters taken from the float network."""
    feeds: Feeds = {f"float:{name}": array[chosen] for name, array in samples.targets.items()}
    feeds |= {f"important:{name}": array[chosen] for name, array in samples.important.items()}
    for name, array in samples.quantized.items():
        x, other = array[chosen], samples.floats[name]
        if x.dtype.kind == "f" and other is not array and drop:
            x = np.where(_chance(x.shape, 1 - drop, rng), x, other[chosen])
        feeds[name] = x
    return feeds
