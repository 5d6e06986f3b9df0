"""Other bits for the weights of some layers of a plan, by name, without their model: the ends of grids stay.

It is below `QuantPlan`, whose method calls it, and takes plans, layers and grids as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from qgraph.errors import UsageError
from qgraph.plan.changes import bits_for, check_patterns, parsed


def with_bits(plan: Any, changes: Sequence[str]) -> Any:
    """The plan with other bits, each grid between the ends that it has.

    Raises:
        UsageError: A change is not understood, matches no layer, or is one of activations, whose tensors only the model
            tells.
    """
    said = parsed(changes)
    check_patterns(said, [layer.name for layer in plan.layers])
    if any(change.what == "activations" for change in said):
        raise UsageError(
            "a plan alone does not know what a layer reads: change bits of activations by qgraph.whatif or "
            "Result.whatif, which have the model"
        )
    return plan.map_layers(lambda layer: _changed(layer, bits_for(said, layer.name, "weights")))


def _changed(layer: Any, bits: int | None) -> Any:
    if bits is None or (bits == layer.weight.bits and not layer.weight.channel_bits):
        return layer
    return dataclasses.replace(layer, weight=_stretched(layer.weight, bits), bias_shift=())


def _stretched(grid: Any, bits: int) -> Any:
    """The grid of other bits over the same ends; what was found for the old codes is gone.

    Old codes l..h with zero point z span (l - z) s .. (h - z) s. A symmetric grid of n bits has 2^(n-1) - 1 codes on
    either side, another has 2^n - 1 steps; 8 bits are symmetric, as integer kernels want them.
    """
    scale, zero = np.asarray(grid.scale), np.asarray(grid.zero_point)
    limits = np.asarray(grid.limits)
    low, high = (limits[:, 0] - zero) * scale, (limits[:, 1] - zero) * scale
    form = dataclasses.replace(
        grid, bits=bits, gain=(1.0,), rounding=None, channel_bits=(), codes="", zero_point=(0,),
        symmetric=grid.symmetric or bits == 8,
    )  # fmt: skip
    if form.symmetric:
        steps = np.maximum(np.abs(low), np.abs(high)) / form.qmax
        points = np.zeros(1, np.int64)
    else:
        steps = (high - low) / (2**bits - 1)
        points = np.clip(np.rint(form.qmin - low / steps), form.qmin, form.qmax).astype(np.int64)
    unit: tuple[float, ...] = ()
    if grid.unit:  # steps stay whole multiples of the units, which stretch alike
        ratio = float(np.max(steps / scale))
        steps, unit = scale * ratio, tuple((np.asarray(grid.unit) * ratio).tolist())
    return dataclasses.replace(form, scale=tuple(steps.tolist()), zero_point=tuple(points.tolist()), unit=unit)
