"""The plan that every method starts from: full-range grids for the chosen layers and the tensors they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import qmath
from qgraph.graph.layers import Layer
from qgraph.graph.sites import ActivationSite, GraphView, choose_layers
from qgraph.graph.tensors import root
from qgraph.plan import codes as weights
from qgraph.plan.blocks import why_no_blocks, why_not_on_grid
from qgraph.plan.changes import bits_for, check_patterns, parsed
from qgraph.plan.dynamic import is_product
from qgraph.plan.grouped import fitting, group_axis, group_of, grouped_grid, regrouped, room, room_of
from qgraph.plan.kept import kept_in_float
from qgraph.plan.placing import place
from qgraph.plan.plan import MAX_BITS, PER_TENSOR, ActivationQuant, LayerQuant, QuantPlan, Runs, WeightQuant
from qgraph.plan.ranges import Ranges
from qgraph.plan.recipe import Recipe
from qgraph.plan.registry import find
from qgraph.plan.saturation import without_saturation
from qgraph.plan.sums import with_room_for_biases, with_shared_weights
from qgraph.plan.words import TargetCpu

STORAGE_BITS = 8  # of tensors that no layer multiplies, such as sums and residual connections
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny) * 2**23  # of an activation
_SMALLEST_WEIGHT_SCALE = float(np.finfo(np.float32).tiny) * 2


def initial_plan(view: GraphView, recipe: Recipe, observed: Ranges | None) -> QuantPlan:
    """Grids that span each weight to its largest magnitude, and each activation from its minimum to its maximum."""
    layers, kept = choose_layers(view, recipe.keep, weight_only=not find(recipe.method).trains)
    activations: list[ActivationQuant] = []
    floats: dict[str, str] = {}
    floats_only: set[str] = set()
    dynamic = _dynamic_layers(layers, recipe, view)
    if recipe.static_bits is not None and observed is not None:
        sites, floats = place(view, [layer for layer in layers if layer.name not in dynamic], observed)
        edges = {
            v.name for name in view.edge_layers for v in (view.by_name[name].input, root(view.by_name[name].input))
        }
        asked = _asked_bits(layers, recipe)
        for site in sites:
            bits = recipe.at_edges(recipe.static_bits) if site.tensor in edges else recipe.static_bits
            bits = asked.get(site.tensor, bits)
            activations += _activation_grids(site, bits, observed)
    else:
        floats_only = {layer.name for layer in layers if layer.in_body}
    in_floats = {layer.name for layer in layers} - dynamic if recipe.dynamic else set(floats) | floats_only
    plan = QuantPlan(
        model=view.model.digest,
        recipe=recipe.method,
        layers=tuple(_layer_grid(layer, recipe, view, _runs(layer, dynamic, in_floats)) for layer in layers),
        activations=tuple(activations),
        kept_float=kept_in_float(view, kept | floats | _unfolded(view), {layer.name for layer in layers}),
    )
    return sound(plan, view, target_cpu=recipe.target_cpu)


def _asked_bits(layers: Sequence[Layer], recipe: Recipe) -> dict[str, int]:
    """The bits that the caller asked for, by the tensors that the layers read."""
    changes = parsed(recipe.changes)
    check_patterns(changes, [layer.name for layer in layers])
    found = {layer: bits_for(changes, layer.name, "activations") for layer in layers}
    return {str(v.name): bits for layer, bits in found.items() if bits for v in (layer.input, root(layer.input))}


def sound(plan: QuantPlan, view: GraphView, *, target_cpu: TargetCpu) -> QuantPlan:
    """The plan with weight scales widened until no integer kernel overflows on the target CPUs."""
    safe = with_room_for_biases(plan if target_cpu == "vnni" else without_saturation(plan, view), view)
    return with_shared_weights(safe, view)


def _unfolded(view: GraphView) -> dict[str, str]:
    """The BatchNormalizations between layers that could not be folded, with the reason."""
    behind = {str(node.name) for node in view.tail}
    return {name: f"not folded: {why}" for name, why in view.unfolded.items() if name not in behind}


def _dynamic_layers(layers: Sequence[Layer], recipe: Recipe, view: GraphView) -> frozenset[str]:
    """The layers that compute the grids of their operands.

    All that can; or, beside static grids, those whose operand other layers do not keep in integers.
    """
    able = [layer for layer in layers if is_product(layer)]
    if recipe.dynamic or not recipe.dynamic_products:
        return frozenset(layer.name for layer in able if recipe.dynamic)
    others = [layer for layer in layers if layer not in able and layer.is_observed]
    kept = {site.tensor for site in view.activation_sites(others)}
    return frozenset(layer.name for layer in able if view.root(layer.input).name not in kept)


def _runs(layer: Layer, dynamic: Container[str], floats: Container[str]) -> Runs:
    if layer.name in dynamic:
        return "dynamic"
    return "integers" if layer.has_integer_kernel and layer.name not in floats else "floats"


def _layer_grid(layer: Layer, recipe: Recipe, view: GraphView, runs: Runs) -> LayerQuant:
    weight = layer.weight_array()
    bits = recipe.bits_of(layer, view.edge_layers)
    floats = runs == "floats" or recipe.activations is None
    symmetric = recipe.symmetric_at(bits, floats=floats)
    most = room(layer, recipe.target_cpu, floats=floats)
    group = group_of(layer, bits, recipe, most)
    if group is not None:
        granularity = qmath.Granularity(axis=group_axis(layer), group=group)
        grid = grouped_grid(weight, granularity, bits=bits, symmetric=symmetric, most=most)
        if recipe.target == "decode" and not (why_no_blocks(layer) or why_not_on_grid(grid)):
            runs = "blocks"
        return LayerQuant(name=layer.name, op=layer.op, weight=grid, runs=runs)
    granularity = qmath.Granularity(axis=layer.scale_axis if recipe.per_channel else None)
    low, high = (granularity.reduce(end, weight) for end in (np.minimum, np.maximum))
    grid = weight_grid(low, high, bits=bits, granularity=granularity, symmetric=symmetric)
    return LayerQuant(name=layer.name, op=layer.op, weight=grid, runs=runs)


def weight_grid(
    low: ArrayLike,
    high: ArrayLike,
    *,
    bits: int,
    granularity: qmath.Granularity = PER_TENSOR,
    symmetric: bool,
    channel_bits: tuple[int, ...] = (),
) -> WeightQuant:
    """The signed grid that spans low..high: symmetric about 0, or with an integer zero point.

    `low` and `high` hold one value for each scale.
    """
    low, high = (np.atleast_1d(np.asarray(v, np.float64)) for v in (low, high))
    widths = np.asarray(channel_bits or bits)
    if symmetric:
        limit = np.maximum(np.abs(low), np.abs(high))
        top = 2.0 ** (widths - 1) - 1
        clip = _wide_enough(0.0, np.where(limit > 0, limit, top), top * _SMALLEST_WEIGHT_SCALE)
        grid = qmath.Grid.symmetric(clip, bits=widths, axis=0)
    else:
        high = _wide_enough(low, high, (2.0**widths - 1) * _SMALLEST_WEIGHT_SCALE)
        grid = qmath.Grid.affine(low, high, bits=widths, signed=True, axis=0)
    return WeightQuant(
        bits=bits,
        scale=tuple(grid.scale.astype(np.float32).tolist()),  # which is what model files hold
        zero_point=(0,) if symmetric else tuple(grid.zero_point.astype(int).tolist()),
        granularity=granularity,
        symmetric=symmetric,
        channel_bits=channel_bits,
    )


def regridded(
    grid: WeightQuant, low: ArrayLike, high: ArrayLike, *, channel_bits: tuple[int, ...] | None = None
) -> WeightQuant:
    """The grid of the same form over low..high, one value for each scale; the ends are those of w `input_scale`."""
    fresh = weight_grid(
        low,
        high,
        bits=grid.bits,
        granularity=grid.granularity,
        symmetric=grid.symmetric,
        channel_bits=grid.channel_bits if channel_bits is None else channel_bits,
    )
    return dataclasses.replace(fresh, input_scale=grid.input_scale)


def spanned(weight: NDArray[np.floating], grid: WeightQuant) -> WeightQuant:
    """The grid of the same form over the whole range of the weight; one of groups is made anew for its kernel."""
    scaled = weights.scaled(weight, grid)
    if grid.unit:
        most = room_of(grid)
        grid = fitting(grid, most)
        if grid.unit:
            return regrouped(scaled, grid, most=most)
    return regridded(grid, *(grid.granularity.reduce(end, scaled) for end in (np.minimum, np.maximum)))


def weights_alone(quant: LayerQuant, layer: Layer) -> LayerQuant:
    """A dynamic layer as one that runs in floats: nothing divides its operand any more."""
    if not quant.weight.input_scale:
        return dataclasses.replace(quant, runs="floats")
    weight = spanned(layer.weight_array(), dataclasses.replace(quant.weight, input_scale=(), gain=(1.0,)))
    return dataclasses.replace(quant, runs="floats", weight=weight, bias_shift=())


def activation_grid(tensor: str, low: float, high: float, *, bits: int, role: str = "tensor") -> ActivationQuant:
    """The unsigned grid that spans low..high, widened to include 0, with an integer zero point."""
    end = _wide_enough(low, high, (2**bits - 1) * _SMALLEST_SCALE)
    grid = qmath.Grid.affine(low, end, bits=bits, dtype=np.float32)
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return ActivationQuant(tensor=tensor, bits=bits, scale=scale, zero_point=zero_point, role=role)  # type: ignore[arg-type]


def _activation_grids(site: ActivationSite, bits: int, observed: Ranges) -> list[ActivationQuant]:
    """One grid, or two where layers read fewer bits than the other consumers of the tensor."""
    low, high = observed.range_of(site.tensor)
    if 0 < max(high, 0.0) - min(low, 0.0) < _SMALLEST_SCALE * (2**bits - 1):
        return []  # the range is too small for any float32 step
    if not site.operand:
        wanted = [("tensor", STORAGE_BITS)]
    elif site.shared and bits != STORAGE_BITS:
        wanted = [("tensor", STORAGE_BITS), ("operand", bits)]
    else:
        wanted = [("tensor", bits)]
    return [activation_grid(site.tensor, low, high, bits=b, role=role) for role, b in wanted]


def _wide_enough(low: ArrayLike, high: ArrayLike, span: ArrayLike) -> NDArray[np.float64]:
    """The high ends, raised where low..high with 0 spans less than `span`, unless it is 0 alone."""
    bottom, top = np.minimum(low, 0.0), np.maximum(high, 0.0)
    return np.where(top > bottom, np.maximum(top, bottom + span), top)


def weight_ends(
    weight: NDArray[np.floating], grid: WeightQuant, method: str, **options: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The low and high end of the range for each scale of `grid`, clipped by `method` at each channel's width."""

    def choose(rows: NDArray[np.floating], bits: int) -> tuple[Any, Any]:
        how, also = (method, options) if bits < MAX_BITS else ("max", {})
        if not grid.symmetric:
            return qmath.weight_range(rows, bits=bits, method=how, axis=0, **also)
        limit = qmath.weight_clip(rows, bits=bits, method=how, axis=0, **also)
        return -limit, limit

    if not grid.channel_bits:
        parts = [choose(rows, grid.bits) for rows in weights.row_blocks(weight, grid.granularity)]
        low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
        return low, high
    rows, widths = grid.granularity.rows(weight), np.asarray(grid.channel_bits)
    low, high = np.empty(len(rows)), np.empty(len(rows))
    for bits in sorted(set(grid.channel_bits)):
        alike = widths == bits
        low[alike], high[alike] = choose(rows[alike], bits)
    return low, high
