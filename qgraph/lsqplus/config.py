"""Settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qgraph.errors import UsageError

Optimiser = Literal["adam", "sgd"]
Initialisation = Literal["lsqplus", "lsq", "minmax", "plan"]
Offsets = Literal["learned", "minimum"]

_EPOCHS, _STEPS, _MOST = 4, 600, 60  # where nothing is said: epochs and steps at least, epochs at most


@dataclass(frozen=True, slots=True, kw_only=True)
class LsqPlusConfig:
    """How scales, offsets and weights are learned.

    Rates are those of the first step; a cosine takes them to zero over `epochs`. With `adam` a rate is relative: the
    size of a step as a share of the root mean square of the tensor it moves, at the start. With `sgd` it multiplies the
    gradient. `scale_rate` is for scales and offsets. Without `epochs`, there are 4, or as many as make 600 steps, 60 at
    most.

    The loss is label_weight CE(labels) + (1 - label_weight) T^2 KL(float || quantized) at temperature T; without labels
    the second term alone. A `batch` is computed in shards of `shard` samples, whose gradients are added in order, so
    that results do not depend on the number of threads. `holdout` is the share of samples that choose the best epoch.
    `configuration` is a row of Table 1 for every tensor below 8 bits; None chooses per tensor.
    """

    epochs: int | None = None
    batch: int = 64
    shard: int = 32
    optimiser: Optimiser = "adam"
    rate: float = 2e-3
    scale_rate: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup: float = 0.05
    initialisation: Initialisation = "lsqplus"
    configuration: int | None = None
    offsets: Offsets = "learned"
    label_weight: float = 0.5
    temperature: float = 4.0
    augment: bool = False
    holdout: float = 0.1
    calibration: int = 256

    def __post_init__(self) -> None:
        for name, kind in (("optimiser", Optimiser), ("initialisation", Initialisation), ("offsets", Offsets)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"unknown {name} '{getattr(self, name)}': choose one of {', '.join(get_args(kind))}")
        for name in ("epochs", "batch", "shard", "calibration"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rate", "scale_rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("momentum", "label_weight", "holdout", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if self.holdout >= 1 or self.momentum >= 1:
            raise UsageError("holdout and momentum must be below 1")
        if self.configuration not in (None, 1, 2, 3, 4):
            raise UsageError(f"--config must be 1, 2, 3 or 4, not {self.configuration}")
        if self.weight_decay < 0:
            raise UsageError("weight_decay must not be negative")

    def passes(self, steps: int) -> int:
        """Epochs of so many steps each."""
        return self.epochs or min(max(_EPOCHS, -(-_STEPS // steps)), _MOST)
