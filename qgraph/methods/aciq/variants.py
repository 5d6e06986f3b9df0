"""A recipe's options applied to a plan; where several variants are possible, the one that measures best."""

from __future__ import annotations

import dataclasses

from qgraph.lowering.lower import lower
from qgraph.methods.aciq import refine as aciq
from qgraph.observe.distance import Reference
from qgraph.observe.material import Material
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import SEARCHED
from qgraph.running.sessions import Session

TRIED = 64  # samples on which variants are compared, by their outputs alone


def refine(plan: QuantPlan, given: Material) -> QuantPlan:
    """From the full-range plan to one as the recipe's options say; its best variant where variants may be tried."""
    view, observed, recipe = given.view, given.observed, given.recipe
    config = aciq.AciqConfig(
        clip="mse" if recipe.clip == SEARCHED else recipe.clip,  # what a search starts from
        weight_clip=recipe.weight_clip,
        bias_correction=recipe.bias_correction and "bias" not in recipe.ingredients,
        allocate_bits=recipe.allocate_bits or "none",  # type: ignore[arg-type]
        channel_activations=recipe.allocate_bits in ("activations", "both"),
        deployable=given.format == "qdq",
        target_cpu=recipe.target_cpu,
    )
    if not given.variants or given.samples is None or observed is None or not recipe.undecided:
        return aciq.refine(plan, view, observed, config=config)
    known = Reference.of(view.model, given.samples, samples=TRIED)
    # squared errors: divergences of confident classifiers hang on a few samples
    reference = dataclasses.replace(known, kinds=dict.fromkeys(known.kinds, "nse"))

    def loss(candidate: QuantPlan) -> float:
        return reference.distance(Session(lower(view.model, candidate, format=given.format, packed=False)))

    return aciq.choose(plan, view, observed, config=config, loss=loss)
