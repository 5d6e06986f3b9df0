"""Apply the options of a recipe to a plan and, if variants may be tried, keep the one that measures best."""

from __future__ import annotations

import dataclasses

from qgraph.lowering.output_errors import output_errors
from qgraph.methods.aciq import refine as aciq
from qgraph.methods.aciq.config import AciqConfig
from qgraph.observe.material import Material
from qgraph.plan.plan import QuantPlan
from qgraph.plan.words import SEARCHED


def refine(plan: QuantPlan, given: Material) -> QuantPlan:
    """Turn the full-range plan into what the recipe asks for; the best variant if variants may be tried."""
    view, observed, recipe = given.view, given.observed, given.recipe
    asked = recipe.config(AciqConfig)
    config = dataclasses.replace(
        asked,
        clip="mse" if recipe.clip == SEARCHED else recipe.clip,  # the clip that a search starts from
        weight_clip=recipe.weight_clip,
        bias_correction=recipe.bias_correction and "bias" not in recipe.ingredients,
        allocate_bits=recipe.allocate_bits or "none",  # type: ignore[arg-type]
        channel_activations=asked.channel_activations or recipe.allocate_bits in ("activations", "both"),
        deployable=given.format == "qdq",
        target_cpu=recipe.target_cpu,
    )
    if not given.variants or given.samples is None or observed is None or not recipe.undecided:
        return aciq.refine(plan, view, observed, config=config, known=given.known.setdefault(config, {}))
    loss = output_errors(view.model, given.samples, format=given.format)
    return aciq.choose(plan, view, observed, config=config, loss=loss)
