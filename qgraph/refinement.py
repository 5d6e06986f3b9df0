"""A recipe's method applied to a plan; where several variants are possible, the one that measures best."""

from __future__ import annotations

import dataclasses

from qgraph import aciq
from qgraph.data import Dataset
from qgraph.distance import Reference
from qgraph.graph import GraphView
from qgraph.observe import Observations
from qgraph.plan import QuantPlan
from qgraph.recipe import SEARCHED, Recipe
from qgraph.result import lower
from qgraph.runtime import Session

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
    )
    if samples is None or observed is None or not recipe.undecided:
        return aciq.refine(plan, view, observed, config=config)
    known = Reference.of(view.model, samples, samples=TRIED)
    # squared errors: divergences of confident classifiers hang on a few samples
    reference = dataclasses.replace(known, kinds=dict.fromkeys(known.kinds, "nse"))

    def loss(candidate: QuantPlan) -> float:
        return reference.distance(Session(lower(view.model, candidate, format=format, packed=False)))

    return aciq.choose(plan, view, observed, config=config, loss=loss)
