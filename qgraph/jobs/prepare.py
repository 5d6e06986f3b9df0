"""Everything that precedes a plan: the normalised network, samples (given or distilled), and their statistics."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from qgraph.assess.coverage import unseen
from qgraph.assess.judge import Judge
from qgraph.assess.metric import MetricLike, load_metric
from qgraph.errors import ModelError, UsageError
from qgraph.graph.sites import GraphView, choose_layers
from qgraph.jobs.distil import DISTILLED, distilled_samples
from qgraph.jobs.trial import Trial, tell
from qgraph.lowering.lower import lower
from qgraph.methods.zeroq.allocate import Drop
from qgraph.methods.zeroq.mixed_precision import Better, Mixer
from qgraph.observe.material import Material, check_needs
from qgraph.observe.propagation import known_moments
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import prepare
from qgraph.plan import registry
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import Recipe
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.samples.dataset import DataLike, Dataset, open_data
from qgraph.samples.preprocessing import Preprocessing
from qgraph.samples.split import Split, calibrating, hold_out, one_at_a_time


@dataclass(frozen=True, eq=False, kw_only=True)
class Gathered(Material):
    """Everything a plan is made from, with the model as loaded and the origin of the samples."""

    loaded: Model
    trial: Trial
    judging: Dataset | None
    """With `max_drop`, the samples that choose among plans; they calibrate none."""
    source: str

    def plan(self) -> QuantPlan:
        """The plan of the recipe's method; for mixed bits, with 8 bits everywhere."""
        return registry.run(self.recipe.method, initial_plan(self.view, self.recipe, self.observed), self)

    def _at(self, plan: QuantPlan, recipe: Recipe) -> QuantPlan:
        """The plan that the method makes for the bits of another recipe."""
        return registry.run(recipe.method, plan, dataclasses.replace(self, recipe=recipe, format="qdq", variants=False))

    def finished(self, plan: QuantPlan) -> QuantPlan:
        """The plan after the methods that run once, after every layer has its bits."""
        for name in self.recipe.methods:
            plan = registry.run(name, plan, self, once=True)
        return plan

    def mixer(self, *, on_better: Better | None = None) -> Mixer:
        """The object that chooses the bits of every layer."""
        return Mixer(
            net=self.net,
            recipe=self.recipe,
            data=self.need_samples("mixed bits are measured on samples"),
            norms=known_moments(normalise(self.loaded, fold_bn=False)),
            refine=self._at,
            lower=lambda plan: lower(self.net, plan, format=self.format),
            judge=self._judge(),
            judging=self.judging,
            on_better=on_better,
            job=self.job,
        )

    def _judge(self) -> Callable[[ir.Model], Drop | None]:
        """A function that measures a candidate on the task; it opens nothing before its first call."""
        samples = self.judging or self.need_samples("--max-drop is measured on samples")
        judge = Judge(
            reference=self.net,
            samples=samples,
            metric=self.trial.metric,
            threads=self.job.threads,
            progress=self.job.progress,
        )

        def dropped(model: ir.Model) -> Drop | None:
            compared = judge(model)
            return None if compared is None else Drop(**dataclasses.asdict(compared))

        return dropped


def gather(
    model: ModelLike,
    data: DataLike | None,
    job: Job | None = None,
    *,
    method: str | None = None,
    format: str = "qdq",
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
    metric: MetricLike | None = None,
    **overrides: Any,
) -> Gathered:
    """Load the model, distil samples where none are given, and observe. The arguments are those of `quantize`."""
    job = job or Job()
    measured = calibration is not None and Path(calibration).exists()
    recipe = Recipe.choose(method, data is not None or measured, **overrides)
    by = None if metric is None else load_metric(metric)
    with job.stage("load"):
        loaded = load(model)
        net = prepare(loaded, opset=opset)
        view = GraphView(net)
        choose_layers(view, recipe.keep)  # fail before the work begins
        samples = (
            None
            if data is None
            else open_data(
                data, net, preprocessing=preprocessing, limit=limit, batch=batch, shapes=shapes, batch_axes=batch_axes
            )
        )
    check_needs(recipe.method, loaded, samples)
    if recipe.max_drop is not None and (samples is None or (by is None and not samples.labelled)):
        raise UsageError("--max-drop measures accuracy: pass --data with an array 'labels', or a --metric")
    if samples is None and recipe.needs_data and (recipe.mixed or not measured):
        with job.stage("distill"):
            samples = distilled_samples(loaded, net, job, count=DISTILLED, shapes=shapes, batch=batch)
    apart = None if samples is None else hold_out(samples)
    samples, judging = _parted(apart, recipe)
    with job.stage("observe"):
        try:
            observed = _observations(net, recipe, samples, calibration, job)
        except ModelError:
            if apart is None or not _takes_one(net, apart):
                raise
            apart = one_at_a_time(apart)
            samples, judging = _parted(apart, recipe)
            observed = _observations(net, recipe, samples, calibration, job)
    if data is not None and samples is not None:
        tell(unseen(net, samples, known_moments(normalise(loaded, fold_bn=False))))
    return Gathered(
        loaded=loaded,
        view=view,
        recipe=recipe,
        samples=samples,
        trial=Trial.of(loaded, apart, given=data is not None, metric=by, progress=job.progress),
        judging=judging,
        observed=observed,
        source=_source(observed, given=data is not None or measured),
        format=format,
        variants=calibration is None,  # with a file of statistics, the statistics alone decide
        job=job,
    )


def _takes_one(net: Model, apart: Split) -> bool:
    """Whether the model fails on a batch but runs on a single sample; warns if so."""
    data = apart.used
    if data.batch is not None or data.count < 2:
        return False
    session = Session(net.ir_model)
    if _runs(session, data) or not _runs(session, replace(data, batch=1)):
        return False
    warnings.warn(
        f"{net.source} takes one sample at a time, although its batch size is open: running it as with --batch 1",
        stacklevel=2,
    )
    return True


def _runs(session: Session, data: Dataset) -> bool:
    """Whether the first batch runs."""
    try:
        session.run_list(next(data.batches()).feeds)
    except ModelError:
        return False
    return True


def _parted(apart: Split | None, recipe: Recipe) -> tuple[Dataset | None, Dataset | None]:
    """Samples that calibrate and, with `max_drop`, samples that judge: half of them or more."""
    if apart is None or recipe.max_drop is None:
        return None if apart is None else apart.used, None
    return calibrating(apart.used)


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
