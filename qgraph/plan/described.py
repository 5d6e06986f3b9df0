"""Plans and their grids in one line each, for people who print them.

It is below the classes that it describes, whose `repr` it is, and takes them as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def plan_line(plan: Any) -> str:
    """Such as `QuantPlan(aciq: 7 layers, weights of 4 and 8 bits, activations of 8 bits; 1 kept float)`."""
    layers = f"{len(plan.layers)} layer{'s' * (len(plan.layers) != 1)}"
    said = [layers, *bits_said(plan)]
    kept = f"; {len(plan.kept_float)} kept float" if plan.kept_float else ""
    return f"QuantPlan({plan.recipe}: {', '.join(said)}{kept})"


def bits_said(plan: Any) -> list[str]:
    """The bits of weights and activations, most frequent first."""
    weights = _most_first(layer.weight.bits for layer in plan.layers)
    operands = _most_first(grid.bits for grid in plan.activations)
    dynamic = any(layer.runs == "dynamic" for layer in plan.layers)
    said = [f"weights of {weights} bits" if weights else "", f"activations of {operands} bits" if operands else ""]
    return [*filter(None, said), *(["activations in every run"] if dynamic else [])]


def weight_line(grid: Any) -> str:
    """Such as `WeightQuant(4 bits, scale=0.01..0.2, 64 scales per channel along axis 0, symmetric)`."""
    widths = f"{min(grid.widths)}..{max(grid.widths)}" if len({*grid.widths}) > 1 else str(grid.bits)
    said = [f"{widths} bits", f"scale={_span(grid.scale)}"]
    if len(grid.scale) > 1:
        said.append(f"{len(grid.scale)} scales {grid.granularity}")
    said.append("symmetric" if grid.symmetric else f"zero_point={_span(grid.zero_point)}")
    extras = ("rounding", "channel_bits", "input_scale", "unit", "codes")
    said += [f"own {name}" for name in extras if getattr(grid, name)]
    return f"WeightQuant({', '.join(said)})"


def layer_line(layer: Any) -> str:
    """Such as `LayerQuant('fc', Gemm, WeightQuant(...), bias shifted, runs on integers)`."""
    shift = ", bias shifted" if layer.bias_shift else ""
    return f"LayerQuant({layer.name!r}, {layer.op}, {weight_line(layer.weight)}{shift}, runs on {layer.runs})"


def activation_line(grid: Any) -> str:
    """Such as `ActivationQuant('relu_out', 8 bits, 0..6, scale=0.0235)`."""
    said = [repr(grid.tensor), f"{grid.bits} bits", f"{grid.low:.4g}..{grid.high:.4g}", f"scale={grid.scale:.4g}"]
    said += [f"zero_point={grid.zero_point}"] if grid.zero_point else []
    said += [f"role={grid.role}"] if grid.role != "tensor" else []
    said += [f"own {name}" for name in ("offset", "rounding", "channel_scale", "channel_bits") if getattr(grid, name)]
    return f"ActivationQuant({', '.join(said)})"


def _most_first(values: Iterable[int]) -> str:
    found = [str(value) for value, _ in Counter(values).most_common()]
    return " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]]))


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
