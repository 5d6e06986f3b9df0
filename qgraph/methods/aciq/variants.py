"""A recipe's method applied to a plan; where several variants are possible, the one that measures best."""

from __future__ import annotations

import dataclasses

from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.aciq import refine as aciq
from qgraph.observe.distance import Reference
from qgraph.observe.statistics import Observations
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import SEARCHED, Recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset

TRIED = 64  # samples on which variants are compared, by their outputs alone


def refine(
    plan: QuantPlan,
    view: GraphView,
    observed: Observations | None,
    recipe: Recipe,
    *,
    format: str = "qdq",
    samples: Dataset | None = None,
) -> QuantPlan:
    """The recipe's method: from the full-range plan to a better one; with samples, its best variant on these."""
    config = aciq.AciqConfig(
        clip="mse" if recipe.clip == SEARCHED else recipe.clip,  # what a search starts from
        weight_clip=recipe.weight_clip,
        bias_correction=recipe.bias_correction and "bias" not in recipe.ingredients,
        allocate_bits=recipe.allocate_bits or "none",  # type: ignore[arg-type]
        channel_activations=recipe.allocate_bits in ("activations", "both"),
        deployable=format == "qdq",
        target_cpu=recipe.target_cpu,
    )
    if samples is None or observed is None or not recipe.undecided:
        return aciq.refine(plan, view, observed, config=config)
    known = Reference.of(view.model, samples, samples=TRIED)
    # squared errors: divergences of confident classifiers hang on a few samples
    reference = dataclasses.replace(known, kinds=dict.fromkeys(known.kinds, "nse"))

    def loss(candidate: QuantPlan) -> float:
        return reference.distance(Session(lower(view.model, candidate, format=format, packed=False)))

    return aciq.choose(plan, view, observed, config=config, loss=loss)
