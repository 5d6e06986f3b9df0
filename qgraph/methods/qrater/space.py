"""The candidates of each stage: grids of clips and roundings around a layer's current candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qgraph.methods.qrater.bench import Candidate
from qgraph.methods.qrater.config import SearchConfig
from qgraph.plan.plan import ActivationQuant, Rounding, WeightQuant

Point = Mapping[str, float]
CLIP_BOUNDS = {"gamma_c": (1e-3, 1.0)}
FINEST = 16  # the most parts of a step to which activations are rounded before they are looked up


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """A box of parameters, the grid over it, and the candidate at a point; `current` is what the layer has now."""

    name: str
    at: Callable[[Point], Candidate]
    grid: tuple[Point, ...]
    bounds: Mapping[str, tuple[float, float]]
    current: Candidate | None

    @property
    def asked(self) -> int:
        """How many points Algorithm 1 measures: all of the grid, or a bias with its shift and without."""
        return len(self.grid) if self.bounds else 2


def clip_stage(side: str, now: Candidate, limits: NDArray[np.float64], config: SearchConfig) -> Stage:
    """Clips at gamma_c max|x|, for the weight (per channel if its grid is) or the operand."""
    now_or_none = now if config.base else None

    def at(point: Point) -> Candidate:
        scales = positive(point["gamma_c"] * limits / _steps(side, now))
        if side == "weight":
            weight = dataclasses.replace(now.weight, scale=tuple(float(s) for s in scales), gain=(1.0,))
            return dataclasses.replace(now, weight=weight)
        operand = dataclasses.replace(_operand(now), scale=float(scales[0]))
        return dataclasses.replace(now, operand=operand)

    grid = tuple({"gamma_c": clip} for clip in config.clips)
    return Stage(name=f"{side} clip", at=at, grid=grid, bounds=CLIP_BOUNDS, current=now_or_none)


def round_stage(side: str, now: Candidate, config: SearchConfig) -> Stage:
    """The parameters (gamma_n, gamma_s) of the rounding of the weight or the operand."""

    def at(point: Point) -> Candidate:
        gamma_n, gamma_s = point["gamma_n"], point.get("gamma_s")
        rounding = Rounding(gamma_n=gamma_n, gamma_s=gamma_s, reading=config.exponent) if gamma_n else None
        if side == "weight":
            return dataclasses.replace(now, weight=dataclasses.replace(now.weight, rounding=rounding))
        operand = _operand(now)
        if rounding is not None and config.fine:
            rounding = dataclasses.replace(rounding, subdivision=subdivision(operand))
        return dataclasses.replace(now, operand=dataclasses.replace(operand, rounding=rounding))

    first = {"gamma_n": (-1.0, 1.0)}
    bounds = first | {"gamma_s": (0.0, 1.0)} if config.gamma_s else first
    return Stage(
        name=f"{side} round",
        at=at,
        grid=tuple(_point(r) for r in config.roundings),
        bounds=bounds,
        current=now if config.base else None,
    )


def can_round(grid: WeightQuant | ActivationQuant, config: SearchConfig) -> bool:
    """Whether a grid can have Q-Rater's rounding: it starts at zero or is symmetric, and its steps can be divided."""
    if not can_clip(grid):
        return False
    if isinstance(grid, WeightQuant):
        return grid.symmetric
    return (grid.symmetric or not grid.zero_point) and not grid.offset and (not config.fine or subdivision(grid) > 1)


def can_clip(grid: WeightQuant | ActivationQuant) -> bool:
    """Whether a share of the largest value determines the clip: all channels have one width, and zero is fixed."""
    if isinstance(grid, WeightQuant):
        return grid.symmetric and not grid.channel_bits and not grid.input_scale
    return not grid.channel_scale and not grid.channel_bits


def subdivision(grid: ActivationQuant) -> int:
    """How many parts of a step an 8-bit code can distinguish."""
    return min(FINEST, 255 // grid.qmax)


def weight_limits(array: NDArray[np.float32], grid: WeightQuant) -> NDArray[np.float64]:
    """The largest magnitude among the weights of each scale."""
    return grid.granularity.reduce(np.maximum, np.abs(array)).astype(np.float64)


def positive(scales: NDArray[np.float64]) -> NDArray[np.float32]:
    """Scales that a file can hold; 1 where all values are zero."""
    return np.where(scales > 1e-30, scales, 1.0).astype(np.float32)


def _steps(side: str, now: Candidate) -> int:
    """How many codes are above zero."""
    return now.weight.qmax if side == "weight" else _operand(now).qmax - _operand(now).zero_point


def _operand(now: Candidate) -> ActivationQuant:
    if now.operand is None:
        raise ValueError("the operand of this layer stays in floating point")
    return now.operand


def _point(rounding: Rounding) -> Point:
    found = {"gamma_n": rounding.gamma_n}
    return found if rounding.gamma_s is None else found | {"gamma_s": rounding.gamma_s}
