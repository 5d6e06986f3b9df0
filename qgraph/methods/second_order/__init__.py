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
    from qgraph.methods.second_order.round import round_weights

    samples = given.need_samples("second-order rounding reads samples")
    return round_weights(plan, given.view, samples, observed=given.observed, job=given.job)
