"""ACIQ: analytic clipping of activations, and bias correction of weights (Banner, Nahshan, Soudry, 2019)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import nearest
from qgraph.methods.aciq.channels import ChannelConfig, allocate_weights, scale_channels
from qgraph.methods.aciq.clip import clip_activations, clip_weights
from qgraph.methods.aciq.config import AciqConfig
from qgraph.methods.aciq.corrections import correct_means, correct_norm, correct_shift
from qgraph.observe.statistics import Observations
from qgraph.plan.plan import MAX_BITS, LayerQuant, QuantPlan
from qgraph.plan.saturation import without_saturation

Known = dict[tuple[LayerQuant, int], LayerQuant]
"""What became of layers that read operands of so many bits (0: no grid)."""


def refine(
    plan: QuantPlan,
    view: GraphView,
    observed: Observations | None,
    *,
    config: AciqConfig | None = None,
    known: Known | None = None,
) -> QuantPlan:
    """Clip every activation and every weight channel at its optimum, then correct norms and expected outputs.

    `known` are layers that were refined before with the same network, observations and config; it takes in the others.
    """
    chosen = config or AciqConfig()
    if observed is not None:
        clipped = clip_activations(plan, view, observed, method=chosen.clip, **chosen.clip_options)
        plan = _scaled(clipped, view, observed, chosen)
    return _Weights(view, observed, chosen, known).refine(plan, chosen.allocate_bits in ("weights", "both"))


def _scaled(plan: QuantPlan, view: GraphView, observed: Observations, config: AciqConfig) -> QuantPlan:
    """The plan with steps, and perhaps bits, per channel of activations, if the config asks for them."""
    if not config.channel_activations or config.clip not in ("aciq", "max"):
        return plan
    allocate = config.allocate_bits in ("activations", "both")
    family = config.prior if config.prior == "laplace" or config.prior == "gaussian" else None
    channels = ChannelConfig(clip=config.clip, allocate=allocate, deployable=config.deployable, family=family)
    return scale_channels(plan, view, observed, config=channels)


class _Weights:
    """Clips and corrects weights; a layer that several plans share is processed once."""

    def __init__(
        self, view: GraphView, observed: Observations | None, config: AciqConfig, known: Known | None = None
    ) -> None:
        self.view, self.observed, self.config = view, observed, config
        self.known: Known = {} if known is None else known

    def refine(self, plan: QuantPlan, allocate: bool) -> QuantPlan:
        """The plan with its weights clipped and corrected; with `allocate`, also with bits per channel."""
        if allocate:
            plan = allocate_weights(plan, self.view, quota=self.config.quota)
        grids = plan.operand_grids

        def key(quant: LayerQuant) -> tuple[LayerQuant, int]:
            operand = nearest(self.view.by_name[quant.name].input, grids)
            return quant, 0 if operand is None else operand.bits

        fresh = tuple(quant for quant in plan.layers if key(quant) not in self.known)
        part = self._finished(dataclasses.replace(plan, layers=fresh))
        self.known.update(zip(map(key, fresh), part.layers, strict=True))
        return plan.map_layers(lambda quant: self.known[key(quant)])

    def _finished(self, plan: QuantPlan) -> QuantPlan:
        if self.config.weight_clip != "max":
            options, known = self.config.weight_options, self.observed
            plan = clip_weights(plan, self.view, method=self.config.weight_clip, observed=known, **options)
        if self.config.target_cpu == "any":
            plan = without_saturation(plan, self.view)
        if not self.config.bias_correction:
            return plan
        plan = correct_norm(plan, self.view)
        if self.config.means == "weights":
            plan = correct_means(plan, self.view)
        elif self.config.means == "inputs" and self.observed is not None:
            plan = correct_shift(plan, self.view, self.observed)
        return plan


def choose(
    plan: QuantPlan,
    view: GraphView,
    observed: Observations,
    *,
    config: AciqConfig,
    loss: Callable[[QuantPlan], float],
) -> QuantPlan:
    """The variant of `refine` with the least `loss`.

    Tries, below 8 bits, the ranges of a Laplace law for all activations, a step per activation channel, then bits per
    activation channel, then bits per weight channel. `loss` measures how far the outputs of a plan are from the float
    model's on calibration samples; it needs no labels. What is least for one layer, by squared error, need not be least
    for the network: channels matter differently to later layers, and errors of clipping do not average out there.
    """
    weights = _Weights(view, observed, config)
    configs, few = [config], any(a.bits < MAX_BITS for a in plan.activations)
    if few and config.clip == "aciq" and config.prior == "checked":
        configs.append(dataclasses.replace(config, prior="laplace"))
    tried: list[_Tried] = []

    def attempt(clipped: QuantPlan, by: AciqConfig) -> None:
        if clipped.activations not in [one.clipped.activations for one in tried]:
            done = weights.refine(clipped, False)
            tried.append(_Tried(loss=loss(done), plan=done, clipped=clipped, config=by))

    for by in configs:
        attempt(clip_activations(plan, view, observed, method=by.clip, **by.clip_options), by)
    first = min(tried, key=lambda one: one.loss)
    for allocate in ("none", "activations") if few else ():
        scaled = dataclasses.replace(first.config, channel_activations=True, allocate_bits=allocate)
        attempt(_scaled(first.clipped, view, observed, scaled), first.config)
    best = min(tried, key=lambda one: one.loss)
    if any(quant.weight.bits < MAX_BITS for quant in plan.layers):
        candidate = weights.refine(best.clipped, True)
        if loss(candidate) < best.loss:
            return candidate
    return best.plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """A plan whose activations were `clipped` by a config, with its weights refined, and its loss."""

    loss: float
    plan: QuantPlan
    clipped: QuantPlan
    config: AciqConfig
