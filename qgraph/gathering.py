"""All that comes before a plan: the network in normal form, samples (given or distilled), and their statistics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qgraph.data import DataLike, Dataset, open_data
from qgraph.errors import UsageError
from qgraph.gain import known_moments
from qgraph.graph import GraphView
from qgraph.initial import initial_plan
from qgraph.job import Job
from qgraph.mixed import Better, Mixer
from qgraph.model import Model, ModelLike, load, normalise
from qgraph.observe import Observations, observe
from qgraph.opset import prepare
from qgraph.plan import QuantPlan
from qgraph.preprocessing import Preprocessing
from qgraph.progress import SILENT, Progress
from qgraph.recipe import Recipe
from qgraph.refinement import refine
from qgraph.result import lower
from qgraph.zeroq import DistillConfig, distill

DISTILLED = 32  # samples distilled where none are given (ZeroQ, section IV)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a plan is made of: the network, the recipe, and what is known of its activations."""

    loaded: Model
    net: Model
    view: GraphView
    recipe: Recipe
    samples: Dataset | None
    observed: Observations | None
    source: str
    job: Job

    def plan(self, *, format: str = "qdq", samples: Dataset | None = None) -> QuantPlan:
        """The plan of the recipe's method; where bits are to be mixed, the one with 8 bits everywhere."""
        first = initial_plan(self.view, self.recipe, self.observed)
        return refine(first, self.view, self.observed, self.recipe, format=format, samples=samples)

    def mixer(self, *, format: str = "qdq", on_better: Better | None = None) -> Mixer:
        """What chooses the bits of every layer."""
        return Mixer(
            net=self.net,
            recipe=self.recipe,
            data=self.need_samples("mixed bits are measured on samples"),
            norms=known_moments(normalise(self.loaded, fold_bn=False)),
            refine=lambda plan, recipe: refine(plan, self.view, self.observed, recipe),
            lower=lambda plan: lower(self.net, plan, format=format),
            on_better=on_better,
            job=self.job,
        )

    def need_samples(self, why: str) -> Dataset:
        """The samples; raises `UsageError` where there are none, as with a calibration file."""
        if self.samples is None:
            raise UsageError(f"{why}: pass --data, a calibration file is not enough")
        return self.samples


def gather(
    model: ModelLike,
    data: DataLike | None,
    job: Job | None = None,
    *,
    method: str | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
    **overrides: Any,
) -> Gathered:
    """Load, distil where there are no data, and observe. Arguments as for `quantize`."""
    job = job or Job()
    measured = calibration is not None and Path(calibration).exists()
    recipe = Recipe.choose(method, data is not None or measured, **overrides)
    with job.stage("load"):
        loaded = load(model)
        net = prepare(loaded, opset=opset)
        view = GraphView(net)
        recipe.choose_layers(view)  # what cannot be done is said before the work begins
        samples = None if data is None else open_data(data, net, preprocessing=preprocessing, limit=limit)
    if recipe.max_drop is not None and (samples is None or samples.labels is None):
        raise UsageError("--max-drop measures accuracy: pass --data with an array 'labels'")
    if samples is None and recipe.needs_data and (recipe.mixed or not measured):
        with job.stage("distill"):
            samples = distilled_samples(loaded, net, job, count=DISTILLED)
    with job.stage("observe"):
        observed = _observations(net, recipe, samples, calibration, job)
    source = _source(observed, given=data is not None or measured)
    return Gathered(
        loaded=loaded,
        net=net,
        view=view,
        recipe=recipe,
        samples=samples,
        observed=observed,
        source=source,
        job=job,
    )


def distilled_samples(loaded: Model, net: Model, job: Job, *, count: int) -> Dataset:
    """`distilled_inputs` of a job, as samples for the network in normal form."""
    inputs = distilled_inputs(
        loaded, count=count, seed=job.seed, threads=job.threads, resume=job.resume, progress=job.progress
    )
    return open_data(inputs, net)


def distilled_inputs(
    model: Model,
    *,
    count: int,
    steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | None = None,
    progress: Progress = SILENT,
) -> Mapping[str, NDArray[np.float32]]:
    """Samples distilled from the model (ZeroQ) with progress shown.

    Warns where the model has nothing to distil from.
    """
    config = DistillConfig() if steps is None else DistillConfig(steps=steps)
    planned = -(-count // config.batch) * config.steps
    seen = 0
    with progress.stage("distilling", planned) as advance:

        def on_step(done: int, total: int, loss: float) -> None:
            nonlocal seen
            now = planned * done // total  # a model without BatchNormalization takes fewer steps than planned
            advance(now - seen, f"loss {loss:.3g}")
            seen = now

        result = distill(model, count=count, config=config, seed=seed, threads=threads, resume=resume, on_step=on_step)
    if result.note:
        warnings.warn(f"{model.source}: {result.note}", stacklevel=2)
    return result.inputs


def _source(observed: Observations | None, *, given: bool) -> str:
    if observed is None:
        return "none"
    return "calibration" if given else "distilled"


def _observations(
    net: Model, recipe: Recipe, data: Dataset | None, calibration: str | Path | None, job: Job
) -> Observations | None:
    if calibration is not None and Path(calibration).exists():
        observed = Observations.load(calibration)
        observed.check_model(net)
        return observed
    if data is None:
        return None
    histograms = calibration is not None or recipe.needs_histograms
    observed = observe(net, data, histograms=histograms, threads=job.threads, progress=job.progress)
    if calibration is not None:
        observed.save(calibration)
    return observed
