"""The settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from qgraph.errors import UsageError
from qgraph.running.wording import option

Optimiser = Literal["adam", "sgd"]
Initialisation = Literal["lsqplus", "lsq", "minmax", "plan"]
Offsets = Literal["learned", "minimum"]
Linear = Literal["offset", "symmetric"]

_SCHEDULES = {2: (14, 1e-2), 3: (10, 5e-3), 4: (6, 3e-3)}  # fewest bits: epochs, rate
_GENTLE = (4, 2e-3)  # the same for more bits
BATCH = 64
_STEPS, _MOST = 150, 60  # steps that count as an epoch where samples are few, and the most epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long to train, and the initial rates of weights and of scales and offsets."""

    epochs: int
    rate: float
    scale_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LsqPlusConfig:
    """How scales, offsets and weights are learned.

    * `epochs`, `rate`: how long and how fast to train; by default they depend on the fewest bits (see `schedule`).
      Rates decay to zero along a cosine after a linear `warmup` over that share of the steps. With the `optimiser`
      `adam`, a rate is the size of a step relative to the initial root mean square of the tensor; with `sgd`, it
      multiplies the gradient. `scale_rate` is the rate of scales and offsets, by default `rate`.
    * `batch`, `shard`: a batch is computed in shards of `shard` samples, whose gradients are added in order, so that
      results do not depend on the number of threads. Where there are fewer than 64 samples, so many are a batch.
    * `label_weight`, `temperature`: the loss is label_weight CE(labels) + (1 - label_weight) T^2 KL(float || quantized)
      at temperature T; without labels, it is the second term alone.
    * `initialisation`: where grids start: `lsqplus`, `lsq`, `minmax`, or `plan` (as they are). `configuration`: a row
      of the paper's Table 1 for every tensor below 8 bits; by default it is chosen per tensor. `offsets`: `learned`, or
      kept at the `minimum`. `linear`: tensors that no activation function writes have an `offset` like all others, or
      are signed and `symmetric` (configuration 2, as in the paper's section 5.1).
    * `calibration`: how many samples the initialisation observes. `holdout`: the share of samples that choose an epoch.
    * `augment`: flip and shift images. `keep_bn`: normalise convolutions whose BatchNormalization was folded by the
      statistics of each shard. `momentum` (of sgd) and `weight_decay` are as usual.

    Raises:
        UsageError: a setting is unknown or out of range.

    Example:
        >>> from qgraph import LsqPlusConfig
        >>> LsqPlusConfig(epochs=3).schedule(bits=4, steps=100)
        Schedule(epochs=3, rate=0.003, scale_rate=0.003)
    """

    epochs: int | None = None
    batch: int = BATCH
    shard: int = 32
    optimiser: Optimiser = "adam"
    rate: float | None = None
    scale_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: float = 0.05
    initialisation: Initialisation = "lsqplus"
    configuration: int | None = None
    offsets: Offsets = "learned"
    linear: Linear = "offset"
    label_weight: float = 0.5
    temperature: float = 4.0
    augment: bool = False
    keep_bn: bool = False
    holdout: float = 0.1
    calibration: int = 256

    def __post_init__(self) -> None:
        words = (("optimiser", Optimiser), ("initialisation", Initialisation), ("offsets", Offsets), ("linear", Linear))
        for name, kind in words:
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"unknown {name} '{getattr(self, name)}': choose one of {', '.join(get_args(kind))}")
        for name in ("epochs", "batch", "shard", "calibration"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rate", "scale_rate", "temperature"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")
        if self.optimiser == "sgd" and self.rate is None:
            raise UsageError(
                f"{option('config.optimiser')} sgd multiplies gradients, whose size is unknown: give its "
                f"{option('config.rate')}"
            )
        for name in ("momentum", "label_weight", "holdout", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if self.holdout >= 1 or self.momentum >= 1:
            raise UsageError("holdout and momentum must be below 1")
        if self.configuration not in (None, 1, 2, 3, 4):
            raise UsageError(f"{option('config.configuration')} must be 1, 2, 3 or 4, not {self.configuration}")
        if self.weight_decay < 0:
            raise UsageError("weight_decay must not be negative")

    def fitting(self, count: int) -> LsqPlusConfig:
        """The same for so many training samples, if the batch is that by default: whole shards, as many as there are.

        Example:
            >>> LsqPlusConfig().fitting(40).batch
            32
        """
        if self.batch != BATCH or not 0 < count < BATCH:
            return self
        shard = min(self.shard, count)
        return replace(self, shard=shard, batch=count // shard * shard)

    def schedule(self, *, bits: int, steps: int) -> Schedule:
        """The schedule for a plan whose fewest bits are `bits`, with `steps` steps per epoch.

        | fewest bits | epochs | rate |
        |---|---|---|
        | 2 | 14 | 0.01 |
        | 3 | 10 | 0.005 |
        | 4 | 6 | 0.003 |
        | 5 and more | 4 | 0.002 |

        If an epoch has fewer than 150 steps, there are more epochs: as many as it takes for the same number of steps as
        with 150 per epoch, but at most 60. The table was chosen on held-out training images of CIFAR-10.

        Example:
            >>> import qgraph
            >>> schedule = qgraph.LsqPlusConfig().schedule(bits=4, steps=50)
            >>> schedule.epochs, schedule.rate
            (18, 0.003)
        """
        epochs, rate = _SCHEDULES.get(bits, _GENTLE)
        rate = self.rate or rate
        enough = min(-(-_STEPS * epochs // steps), _MOST)
        return Schedule(epochs=self.epochs or max(epochs, enough), rate=rate, scale_rate=self.scale_rate or rate)
