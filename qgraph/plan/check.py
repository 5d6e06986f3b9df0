"""Check that a plan fits its model, before anything is written: lengths, axes, ranges of float32, and what clips."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qgraph.errors import PlanError, QualityWarning
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.plan import codes as weights
from qgraph.plan.edit import refitted
from qgraph.plan.fitted import bits_of
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.running.wording import command

MOST_LOST = 0.5  # of a weight's energy: a grid that clips more was not made for its bits
_LARGEST = float(np.finfo(np.float32).max)
_SHIFTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def checked(plan: QuantPlan, view: GraphView) -> QuantPlan:
    """The plan, if it fits the model.

    Grids whose bits were changed without their scale are fitted to their weights again, with a warning.

    Raises:
        PlanError: a length, an axis or a number does not fit; the message names the layer or tensor, and the field.
    """
    layers = tuple(_checked_layer(quant, view) for quant in plan.layers)
    for grid in plan.activations:
        _check_activation(grid, view)
    return dataclasses.replace(plan, layers=layers)


def _checked_layer(quant: LayerQuant, view: GraphView) -> LayerQuant:
    layer = view.by_name.get(quant.name)
    if layer is None:
        raise PlanError(f"the plan quantizes '{quant.name}', which is no quantizable layer of {view.model.source}")
    if layer.op != quant.op:
        raise PlanError(f"layer '{quant.name}' is a {layer.op} in the model, and the plan says {quant.op}")
    weight, grid = layer.weight_array(), quant.weight
    _check_lengths(quant, layer, weight.shape)
    _check_float32(f"layer '{quant.name}'", "bias_shift", quant.bias_shift)
    _check_float32(f"layer '{quant.name}'", "scale times gain", np.asarray(grid.scale) * np.asarray(grid.gain))
    if grid.fitted:
        return _refitted(quant, layer, bits_of(grid.fitted), "")
    lost = _lost(weight, grid)
    if lost <= MOST_LOST:
        return quant
    if _lost(weight, _at(grid, MAX_BITS)) > MOST_LOST:
        raise PlanError(
            f"the scale of layer '{quant.name}' clips {lost:.0%} of its weight's energy, at {MAX_BITS} bits too: mend "
            f"`weight.scale`, or make the plan anew with "
            f"{command('qgraph quantize --plan', 'qgraph.quantize')}"
        )
    return _refitted(quant, layer, MAX_BITS, f", which would clip {lost:.0%} of its weight's energy")


def _refitted(quant: LayerQuant, layer: Layer, before: int, why: str) -> LayerQuant:
    bits = quant.weight.bits
    warnings.warn(
        f"the bits of layer '{quant.name}' were changed to {bits} without its scale{why}: the scale is fitted again",
        QualityWarning,
        stacklevel=5,
    )
    return refitted(quant, layer, bits, before=before)


def _check_lengths(quant: LayerQuant, layer: Layer, shape: tuple[int, ...]) -> None:
    grid, where = quant.weight, f"layer '{quant.name}'"
    axis = grid.granularity.axis
    if axis is not None and not 0 <= axis < len(shape):
        raise PlanError(f"{where}: its weight of shape {list(shape)} has no axis {axis}")
    count = grid.granularity.count(shape)
    for name, values in (("scale", grid.scale), ("zero_point", grid.zero_point), ("gain", grid.gain)):
        if len(values) not in (1, count):
            raise PlanError(
                f"{where}: {len(values)} values of weight.{name} for {count} scales {grid.granularity} of a weight of "
                f"shape {list(shape)}; give {count}, or 1 for all"
            )
    if layer.op not in _SHIFTED:
        return
    outputs = layer.output_channels
    for name, found, wanted in (
        ("bias_shift", len(quant.bias_shift), outputs),
        ("weight.input_scale", len(grid.input_scale), layer.input_channels),
        ("weight.input_mean", len(grid.input_mean), layer.input_channels),
        ("weight.input_spread", len(grid.input_spread), layer.input_channels),
    ):
        if found not in (0, wanted):
            raise PlanError(f"{where}: {found} values of {name} for {wanted} channels; give {wanted}, or none")


def _check_activation(grid: ActivationQuant, view: GraphView) -> None:
    where = f"tensor '{grid.tensor}'"
    value = view.values.get(grid.tensor)
    if value is None:
        raise PlanError(f"the plan quantizes the {where}, which the model does not have")
    _check_float32(where, "low or high end", (grid.low, grid.high))
    shape = value.shape
    if grid.channel_scale and shape is not None:
        channels = shape[1] if len(shape) > 1 else None
        if isinstance(channels, int) and channels != len(grid.channel_scale):
            raise PlanError(f"{where}: {len(grid.channel_scale)} values of channel_scale for {channels} channels")


def _check_float32(where: str, name: str, values: Sequence[float] | NDArray[np.float64]) -> None:
    found = np.asarray(values, np.float64)
    wrong = found[~(np.abs(found) <= _LARGEST)]
    if wrong.size:
        raise PlanError(f"{where}: {name} must be finite in float32, not {wrong[0]}")


def _at(grid: WeightQuant, bits: int) -> WeightQuant:
    return dataclasses.replace(grid, bits=bits, channel_bits=(), zero_point=(0,), symmetric=True)


def _lost(weight: NDArray[np.float32], grid: WeightQuant) -> float:
    """The share of a weight's energy beyond the ends of its grid."""
    rows = grid.granularity.rows(weights.scaled(weight, grid)).astype(np.float64)
    scale, zero_point = np.asarray(grid.scale)[:, None], np.asarray(grid.zero_point)[:, None]
    low, high = (np.asarray(ends)[:, None] for ends in zip(*grid.limits, strict=True))
    beyond = rows - np.clip(rows, (low - zero_point - 0.5) * scale, (high - zero_point + 0.5) * scale)
    return float(np.square(beyond).sum() / max(np.square(rows).sum(), np.finfo(np.float64).tiny))
