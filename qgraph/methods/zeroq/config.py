"""The settings of ZeroQ: how samples are distilled, how ranges come from them, and how bits are searched for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from qgraph.errors import UsageError

Per = Literal["image", "batch"]
Start = Literal["natural", "uniform", "gaussian"]
Decay = Literal["cosine", "plateau"]
Builder = Literal["portable", "training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """The hyper-parameters of distillation.

    Optimisation starts from noise: with the spectrum of natural images (`natural`), `gaussian` of variance 1, or the
    authors' `uniform` one of half-width `width`. Adam's learning `rate` falls to 0 by a cosine over `steps`, or, with
    the decay `plateau`, to a tenth, down to `floor`, whenever `patience` steps bring no improvement. A batch is done
    before if its ranges have `settled` (see `Settling`; 0: never). A `batch` is smaller where its step would take more
    than half of `memory` bytes; two run at once. `bound` is the largest magnitude of a value; with `pixels`,
    what passes 0 and 255 is cut off images in the end, where their normalisation is given. `per` says whether the
    statistics of each image (as in the authors' code) or of the batch are matched. On two CIFAR networks, batch
    statistics and the natural start gave ranges with better accuracy. `builder` makes the gradients: "portable", of
    standard operators, or "training", by onnxruntime-training in an environment of its own.

    Raises:
        UsageError: a setting is out of range.
    """

    steps: int = 60
    rate: float = 0.2
    decay: Decay = "cosine"
    patience: int = 100
    floor: float = 1e-4
    settled: float = 0.02
    start: Start = "natural"
    width: float = 0.0235
    batch: int = 32
    memory: int = 5 * 2**28
    per: Per = "batch"
    bound: float = float("inf")
    pixels: bool = True
    builder: Builder = "portable"
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "patience", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"zeroq.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rate", "width", "bound"):
            if not getattr(self, name) > 0:
                raise UsageError(f"zeroq.{name} must be positive, not {getattr(self, name)}")
        if not (math.isfinite(self.settled) and self.settled >= 0 and self.floor >= 0):
            raise UsageError(f"zeroq.settled and zeroq.floor must not be negative, not {self.settled}, {self.floor}")

    def for_folded(self) -> DistillConfig:
        """Short and careful, for estimated statistics: stay close to natural noise and within its range."""
        return replace(self, rate=0.15, settled=0.0, start="natural", bound=3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixConfig:
    """How much is measured to choose the bits of layers, and where activation ranges come from without data.

    `samples` are run to measure sensitivities. `a`, `b`, `t1` and `t2` are those of Appendix A, for `--search groups`:
    layers per group, intervals of size, and in each the selections that are measured and those that are kept. `laws`:
    ranges follow from BatchNormalization alone where they can (`qgraph.observe.known_laws`); without, from distilled
    samples, as in the paper. `count` samples are distilled, by default 32, or 128 where weights are rounded by them
    (fewer of large networks).

    Raises:
        UsageError: a number is not positive.
    """

    samples: int = 64
    a: int = 10
    b: int = 10
    t1: int = 12
    t2: int = 4
    laws: bool = True
    count: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "a", "b", "t1", "t2", "count"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"zeroq.{name} must be at least 1, not {getattr(self, name)}")
