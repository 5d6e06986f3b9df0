"""Second-order rounding of weights, layer after layer, by what reaches each layer in the quantized network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgraph.plan.registry import method

if TYPE_CHECKING:
    from qgraph.observe.material import Material
    from qgraph.plan.plan import QuantPlan


@method("second-order", after="aciq", once=True, defaults={"rounding": "second-order"}, needs=["data"])
def second_order(plan: QuantPlan, given: Material) -> QuantPlan:
    """ACIQ, then weights rounded in turn, each error passed on to those not yet rounded (GPTQ)."""
    from qgraph.gradient.importance import important_positions
    from qgraph.lowering.output_errors import output_errors
    from qgraph.methods.second_order.clips import important_clips
    from qgraph.methods.second_order.round import FAST, SecondOrderConfig, chosen_samples, round_weights

    samples = given.need_samples("second-order rounding reads samples")
    config = FAST if given.recipe.effort == "fast" else SecondOrderConfig()
    chosen, size = chosen_samples(samples, config, given.observed)
    names = [str(layer.output.name) for layer in given.view.layers] + [grid.tensor for grid in plan.activations]
    nbytes = 0 if given.observed is None else given.observed.sample_bytes
    important = important_positions(given.view, names, chosen, sample_bytes=nbytes, job=given.job)
    clipped = important_clips(plan, given.view, list(chosen.batches(size)), important, job=given.job)
    if clipped != plan:
        errors = output_errors(given.net, samples, format=given.format)
        plan = min(clipped, plan, key=errors)
    return round_weights(
        plan, given.view, samples, config=config, observed=given.observed, job=given.job, important=important
    )
