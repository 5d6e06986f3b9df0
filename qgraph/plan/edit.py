"""A plan with other bits for some layers, whose grids are fitted anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import qmath
from qgraph.errors import PlanError
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.plan import codes as weights
from qgraph.plan.blocks import why_not_on_grid
from qgraph.plan.changes import Change, bits_for, check_patterns
from qgraph.plan.grids import STORAGE_BITS, activation_grid, regridded, sound, weight_ends
from qgraph.plan.grouped import fitting, regrouped, room_of
from qgraph.plan.plan import MAX_BITS, ActivationQuant, LayerQuant, QuantPlan
from qgraph.running.wording import option


class Statistics(Protocol):
    """The statistics of tensors, by name."""

    def __getitem__(self, tensor: str) -> qmath.Statistics: ...


def edited(
    plan: QuantPlan, view: GraphView, changes: Sequence[Change], observed: Statistics | None = None
) -> QuantPlan:
    """The plan with other bits for some layers, whose grids are fitted anew.

    Weights get the range of least squared error, activations the same where `observed` holds their histogram, otherwise
    the range that they have.

    Raises:
        UsageError: a pattern matches no layer.
        PlanError: no layer that a pattern matches reads a static grid, or one reads a grid with steps per channel.
    """
    check_patterns(changes, [layer.name for layer in plan.layers])
    layers = tuple(
        with_weight_bits(q, view.by_name[q.name], bits_for(changes, q.name, "weights") or q.weight.bits)
        for q in plan.layers
    )
    changed = dataclasses.replace(plan, layers=layers, activations=_activations(plan, view, changes, observed))
    return plan if changed == plan else sound(changed, view, target_cpu="any")


def with_weight_bits(quant: LayerQuant, layer: Layer, bits: int) -> LayerQuant:
    """The layer with other bits for its weight, whose grid is fitted anew."""
    old = quant.weight
    if bits == old.bits and not old.channel_bits:
        return quant
    return refitted(quant, layer, bits, before=old.bits)


def refitted(quant: LayerQuant, layer: Layer, bits: int, *, before: int) -> LayerQuant:
    """The layer with a weight of `bits`, `before` of other bits, whose grid has the range of least squared error."""
    old, floats = quant.weight, quant.runs in ("floats", "blocks")
    symmetric = bits == MAX_BITS and not floats if MAX_BITS in (bits, before) else old.symmetric
    form = dataclasses.replace(
        old, bits=bits, symmetric=symmetric, zero_point=(0,), gain=(1.0,), rounding=None, channel_bits=()
    )
    weight = weights.scaled(layer.weight_array(), form)
    if old.unit:
        form = fitting(form, room_of(old))
    grid = (
        regrouped(weight, form, most=room_of(old)) if form.unit else regridded(form, *weight_ends(weight, form, "mse"))
    )
    runs = "floats" if quant.runs == "blocks" and why_not_on_grid(grid) else quant.runs
    return dataclasses.replace(quant, weight=grid, bias_shift=(), runs=runs)


def _activations(
    plan: QuantPlan, view: GraphView, changes: Sequence[Change], observed: Statistics | None
) -> tuple[ActivationQuant, ...]:
    grids = {(grid.tensor, grid.role): grid for grid in plan.activations}
    layers = [view.by_name[quant.name] for quant in plan.layers]
    shared = {site.tensor for site in view.activation_sites(layers) if site.shared}
    read = {layer.name: nearest(layer.input, plan.operand_grids) for layer in layers}
    for change in changes:
        _check_grids(change, read)
    for layer in layers:
        bits, grid = bits_for(changes, layer.name, "activations"), read[layer.name]
        if bits is not None and grid is not None:
            new = _operand(grid, bits, observed, shared)
            grids[new.tensor, new.role] = new
    return tuple(grids.values())


def _check_grids(change: Change, read: Mapping[str, ActivationQuant | None]) -> None:
    """Raise `PlanError` where a change concerns activations, and no layer that it matches reads a grid to change."""
    if change.what == "weights":
        return
    matched = {name: grid for name, grid in read.items() if fnmatchcase(name, change.pattern)}
    if not any(matched.values()):
        first, *others = matched
        nor = f", nor does any other that '{change.pattern}' matches" if others else ""
        raise PlanError(f"layer '{first}' reads no static grid{nor}: the bits of its activations cannot be changed")
    for name, grid in matched.items():
        if grid is not None and grid.channel_scale:
            raise PlanError(
                f"layer '{name}' reads '{grid.tensor}' with a step per channel, which weights contain: make the plan "
                f"with {option('allocate_bits', 'none')}"
            )


def _operand(grid: ActivationQuant, bits: int, observed: Statistics | None, shared: set[str]) -> ActivationQuant:
    """The grid at other bits: in place of the old one, or on top of it where not only layers read the tensor."""
    if bits == grid.bits:
        return grid
    role = "operand" if grid.tensor in shared and bits != STORAGE_BITS else grid.role
    low, high = grid.low, grid.high
    statistics = None if observed is None else observed[grid.tensor]
    if statistics is not None and statistics.histogram is not None and statistics.min < statistics.max:
        best = qmath.clip_range(
            statistics.histogram, method="mse", bits=bits, one_sided=bool(statistics.min >= 0), symmetric=False
        )
        low, high = best.low, best.high
    return activation_grid(grid.tensor, low, high, bits=bits, role=role)
