"""Samples for training: split, drawn in random order, flipped and shifted.

All draws follow from the seed, so that training can be interrupted and continued anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import DataError
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.running.wording import option
from qgraph.samples.dataset import Batch, Dataset

_SPLIT, _ORDER, _CHANGE = range(3)  # what a draw is for


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Training batches and held-out samples; `training` and `held_out` are indices into the data."""

    data: Dataset
    config: LsqPlusConfig
    seed: int
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @property
    def steps(self) -> int:
        """The steps of an epoch, which only has full batches."""
        return len(self.training) // self.config.batch

    def batch(self, epoch: int, step: int) -> Batch:
        """Batch `step` of an epoch."""
        order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(self.training)
        chosen = self.data.take(order[step * self.config.batch : (step + 1) * self.config.batch])
        if not self.config.augment:
            return chosen
        rng = np.random.default_rng([self.seed, _CHANGE, epoch, step])
        feeds = {name: augment(x, rng) if _is_image(x) else x for name, x in chosen.feeds.items()}
        return Batch(feeds=feeds, count=chosen.count, labels=chosen.labels, targets=chosen.targets)

    def held_out_batches(self, size: int) -> Iterator[Batch]:
        """Batches of so many held-out samples, or of as many as the model takes."""
        return self.data.choose(self.held_out).batches(size)


def open_feed(data: Dataset, config: LsqPlusConfig, *, seed: int) -> Feed:
    """Hold some samples out; raises `DataError` if less than one batch is left."""
    order = np.random.default_rng([seed, _SPLIT]).permutation(data.count)
    held_out = round(config.holdout * data.count)
    config = config.fitting(data.count - held_out)
    if data.count - held_out < config.batch:
        raise DataError(
            f"{data.description} has {data.count} samples, of which {held_out} are held out: too few for a batch of "
            f"{config.batch}; give more, or a smaller {option('config.batch')}"
        )
    return Feed(
        data=data, config=config, seed=seed, training=np.sort(order[held_out:]), held_out=np.sort(order[:held_out])
    )


def augment(images: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Mirror half of the images (N x C x H x W) and shift each by up to an eighth of its size, repeating the border."""
    height, width = images.shape[2:]
    reach = height // 8, width // 8
    mirrored = rng.random(len(images)) < 0.5
    down, right = (rng.integers(-r, r + 1, len(images)) for r in reach)
    rows = np.clip(np.arange(height) - down[:, None], 0, height - 1)
    columns = np.clip(np.arange(width) - right[:, None], 0, width - 1)
    columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
    picked = images[np.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return np.ascontiguousarray(picked.transpose(0, 3, 1, 2))


def _is_image(array: NDArray[Any]) -> bool:
    return array.ndim == 4 and array.shape[1] in (1, 3) and min(array.shape[2:]) >= 8
