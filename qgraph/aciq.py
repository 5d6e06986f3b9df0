"""ACIQ: analytic clipping of activations, and bias correction of weights (Banner, Nahshan, Soudry, 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qgraph.calibrate import clip_activations, clip_weights
from qgraph.channels import ChannelConfig, allocate_weights, scale_channels
from qgraph.correct import correct_norm, correct_shift
from qgraph.graph import GraphView
from qgraph.observe import Observations
from qgraph.plan import MAX_BITS, QuantPlan

Allocation = Literal["none", "weights", "activations", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AciqConfig:
    """Which ingredients take part; `clip` and `weight_clip` are names of `qmath.clip_methods()`.

    `allocate_bits` says whose channels get bits by the 2/3-power rule; `channel_activations` gives activations a step
    per channel, where `deployable` only as far as the weights around them can carry it.
    """

    clip: str = "aciq"
    weight_clip: str = "mse"
    bias_correction: bool = True
    allocate_bits: Allocation = "none"
    channel_activations: bool = False
    deployable: bool = True


def refine(
    plan: QuantPlan, view: GraphView, observed: Observations | None, *, config: AciqConfig | None = None
) -> QuantPlan:
    """Clip every activation at its optimum, every weight channel at its own, then correct norm and expected output."""
    chosen = config or AciqConfig()
    if observed is not None:
        plan = clip_activations(plan, view, observed, method=chosen.clip)
    return _refine_clipped(plan, view, observed, chosen)


def _refine_clipped(plan: QuantPlan, view: GraphView, observed: Observations | None, chosen: AciqConfig) -> QuantPlan:
    if observed is not None and chosen.channel_activations and chosen.clip in ("aciq", "max"):
        allocate = chosen.allocate_bits in ("activations", "both")
        channels = ChannelConfig(clip=chosen.clip, allocate=allocate, deployable=chosen.deployable)
        plan = scale_channels(plan, view, observed, config=channels)
    if chosen.allocate_bits in ("weights", "both"):
        plan = allocate_weights(plan, view)
    if chosen.weight_clip != "max":
        plan = clip_weights(plan, view, method=chosen.weight_clip)
    if chosen.bias_correction:
        plan = correct_norm(plan, view)
        if observed is not None:
            plan = correct_shift(plan, view, observed)
    return plan


def choose(
    plan: QuantPlan,
    view: GraphView,
    observed: Observations,
    *,
    config: AciqConfig,
    loss: Callable[[QuantPlan], float],
) -> QuantPlan:
    """The refinement with the least `loss`: with or without a step per activation channel, bits per channel of
    activations, and then bits per channel of weights, where these have fewer than 8.

    `loss` measures how far the outputs of a plan are from the float model's, on calibration samples; it needs no
    labels. The 2/3-power rule minimises the noise of a layer, and where channels differ in what they mean to later
    layers that may not be the noise of the network.
    """
    plan = clip_activations(plan, view, observed, method=config.clip)
    best = _refine_clipped(plan, view, observed, config)
    least = loss(best)
    narrow = any(a.bits < MAX_BITS for a in plan.activations), any(q.weight.bits < MAX_BITS for q in plan.layers)
    chosen = config
    for wanted, changes in (
        (narrow[0], {"channel_activations": True}),
        (narrow[0], {"channel_activations": True, "allocate_bits": "activations"}),
        (narrow[1], {"allocate_bits": "weights"}),
    ):
        if not wanted:
            continue
        variant = dataclasses.replace(chosen, **changes)
        if {chosen.allocate_bits, variant.allocate_bits} == {"activations", "weights"}:
            variant = dataclasses.replace(variant, allocate_bits="both")
        candidate = _refine_clipped(plan, view, observed, variant)
        reached = loss(candidate)
        if reached < least:
            best, least, chosen = candidate, reached, variant
    return best
