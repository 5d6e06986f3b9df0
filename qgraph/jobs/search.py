"""Q-Rater from model to plan: make the starting plan of a protocol, then search from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.graph.sites import GraphView
from qgraph.jobs.given import open_given
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.polish import ConstantObjective as ConstantObjective
from qgraph.methods.qrater.polish import polish
from qgraph.methods.qrater.protocol import starting_in_paper
from qgraph.methods.qrater.search import Found
from qgraph.observe.material import Material
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.plan import registry
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import Recipe
from qgraph.plan.request import choose_recipe
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.store import hold
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, open_data, take_reading
from qgraph.samples.fallback import falling_back


@dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """The network that was searched, the starting plan, and what was found."""

    net: Model
    base: QuantPlan
    found: Found

    @property
    def plan(self) -> QuantPlan:
        return self.found.plan


@keeps_threads
def search(
    model: ModelLike,
    data: DataLike,
    *,
    config: SearchConfig | None = None,
    first_layer_bits: int | None = None,
    opset: int | None = None,
    threads: int | None = None,
    executor: str = "local",
    folder: str | Path | None = None,
    progress: Progress = SILENT,
    **overrides: Any,
) -> Searched:
    """Find clips, roundings and bias shifts by measuring the task on `data` (Q-Rater, Algorithm 1).

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: samples; the objectives `accuracy` and `loss` need labels.
        config: what is searched, where, and how carefully, instead of the `settings` (`qrater.race` and the like).
        first_layer_bits: with `paper`, the bits of the first layer.
        preprocessing, limit, batch, shapes, batch_axes, opset, threads, progress: as in `quantize`.
        executor: `local` or `dask:ADDRESS`; the result is the same.
        folder: keeps every evaluation; the same search continues from what it finds there.
        overrides: fields of `Recipe`, such as `weights`, `activations`, `keep` or `clip` (of the starting plan). With
            the `protocol` "paper": one signed symmetric grid per layer, BatchNormalization kept, the first layer in
            floating point unless `first_layer_bits` is given, and the search as in the paper.

    Raises:
        ConstantObjective: no candidate made a difference to the objective.
        QGraphError: something else is wrong with the model, the data or the options.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> clips = qgraph.SearchConfig(ingredients=("clip",), clips=(0.6, 0.8, 1.0))
        >>> found = qgraph.search(network, samples, limit=16, weights=4, config=clips)
        >>> found.plan == found.base
        False
    """
    reading = take_reading(overrides)
    recipe = choose_recipe("qrater", True, **overrides)
    net = open_given(model, None, opset=opset, fold_bn=recipe.fold_bn, **reading).net
    samples = open_data(data, net, **reading)
    config = dataclasses.replace(config or recipe.config(SearchConfig), fine=recipe.protocol == "deploy")
    job = Job(threads=threads, resume=folder, executor=executor, progress=progress)
    with hold(folder):
        observed = None
        if recipe.needs_data:
            samples, observed = falling_back(
                net, samples, lambda some: observe(net, some, threads=threads, progress=progress)
            )
        base = starting_plan(GraphView(net), observed, recipe, first_layer_bits=first_layer_bits)
        return Searched(net=net, base=base, found=polish(base, net, samples, config=config, job=job))


def starting_plan(
    view: GraphView,
    observed: Observations | None,
    recipe: Recipe,
    *,
    first_layer_bits: int | None = None,
) -> QuantPlan:
    """The plan that a search improves: clips of least squared error and rounding to nearest."""
    if recipe.protocol == "paper":
        return starting_in_paper(view, observed, recipe, first_layer_bits=first_layer_bits)
    given = Material(view=view, recipe=recipe, observed=observed)
    return registry.run(recipe.method, initial_plan(view, recipe, observed), given)
