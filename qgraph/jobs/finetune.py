"""Quantization-aware training: from an ONNX file to a trained and quantized one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.assess.metric import MetricLike, load_metric
from qgraph.assess.verify import verify
from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView, choose_layers
from qgraph.jobs.below import warn_of_result
from qgraph.jobs.distil import distilled_samples
from qgraph.jobs.given import open_given
from qgraph.jobs.result import Result
from qgraph.jobs.trial import Trial, tell
from qgraph.lowering.lower import lower
from qgraph.lowering.simulate import simulate
from qgraph.methods.lsqplus.biases import settle_biases
from qgraph.methods.lsqplus.config import LsqPlusConfig, Schedule
from qgraph.methods.lsqplus.holdout import Judgement
from qgraph.methods.lsqplus.step import check_trainable
from qgraph.methods.lsqplus.train import Training, train
from qgraph.methods.portable.portable import made_portable
from qgraph.methods.zeroq.config import DistillConfig, MixConfig
from qgraph.observe.material import Material, check_needs
from qgraph.observe.propagation import known_moments
from qgraph.observe.statistics import observe
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import registry
from qgraph.plan.given import PlanLike, given_plan
from qgraph.plan.grids import activation_grid, initial_plan
from qgraph.plan.plan import ActivationQuant, QuantPlan
from qgraph.plan.recipe import Recipe, check_format
from qgraph.plan.request import choose_recipe
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.store import hold
from qgraph.running.threads import keeps_threads
from qgraph.running.wording import Blank, command, option
from qgraph.samples.dataset import DataLike, Dataset, take_reading
from qgraph.samples.fallback import falling_back
from qgraph.samples.layout import batch_axes
from qgraph.samples.split import Split, hold_out

DISTILLED = 512  # samples distilled by default


@dataclass(frozen=True, eq=False, kw_only=True)
class Finetuned(Result):
    """The result of fine-tuning: `net` is the trained float network, the one that `plan` is for."""

    schedule: Schedule
    epochs: tuple[Judgement, ...]
    """One judgement of the starting point, then one per epoch."""
    best_epoch: int

    def to_dict(self, *, output: str | None = None, nbytes: int | None = None) -> dict[str, Any]:
        """What `qgraph finetune --json` prints."""
        described = Result.to_dict(self, output=output, nbytes=nbytes)
        history = [dataclasses.asdict(epoch) for epoch in self.epochs]
        schedule = dataclasses.asdict(self.schedule)
        return described | {"schedule": schedule, "epochs": history, "best_epoch": self.best_epoch}


@keeps_threads
def finetune(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str = "lsqplus",
    config: LsqPlusConfig | None = None,
    start: PlanLike | None = None,
    format: str = "qdq",
    opset: int | None = None,
    seed: int = 0,
    measure: bool = True,
    metric: MetricLike | None = None,
    threads: int | None = None,
    resume: str | Path | None = None,
    executor: str = "local",
    progress: Progress = SILENT,
    **overrides: Any,
) -> Finetuned:
    """Train the weights of a model together with the scales and offsets of its grids (LSQ+).

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: training samples, with or without labels; by default distilled from the model.
        method: makes the plan that training starts from: `lsqplus`, or another method that trains.
        config: settings of the training, instead of those in `settings` (`lsqplus.rate` and the like); epochs and rate
            depend on the fewest bits unless they are given.
        start: a plan for this model, the path of its file or a result, whose grids training starts from; by default
            grids are initialised.
        format, preprocessing, limit, batch, shapes, batch_axes, opset, seed, measure, metric, threads, resume:
            as in `quantize`.
        executor: where samples are observed and distilled: `local` or `dask:ADDRESS`; training runs here.
        overrides: fields of `Recipe`, such as `weights`, `activations` (4 bits by default) or `keep`.

    Raises:
        QGraphError: something is wrong with the model, the data or the options; the message says what to do.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> short = qgraph.LsqPlusConfig(epochs=1, batch=8, shard=8)
        >>> trained = qgraph.finetune(network, samples, limit=16, config=short, measure=False)
        >>> len(trained.epochs)  # the starting point and one epoch
        2
    """
    check_format(format)
    reading = take_reading(overrides)
    job = Job(seed=seed, threads=threads, resume=resume, executor=executor, progress=progress)
    recipe = _recipe(method, data is not None, **overrides)
    chosen = config or recipe.config(LsqPlusConfig)
    by = None if metric is None else load_metric(metric)
    with job.stage("load"):
        given = open_given(model, data, opset=opset, **reading)
        check_needs(method, given.loaded, given.samples)
        plan = _given_plan(start, given.net)
        batch_norms = known_moments(normalise(given.loaded, fold_bn=False)).keys()
        _check(given.net, recipe, chosen, batch_norms)
        if data is None:
            axes = batch_axes(given.net.input_values(), reading.get("batch_axes") or {})
            check_trainable(given.net, choose_layers(GraphView(given.net), recipe.keep)[0], chosen, axes=axes)
    with hold(resume):
        samples = given.samples
        if samples is None:
            with job.stage("distill"):
                count = reading.get("limit") or recipe.config(MixConfig).count or DISTILLED
                samples = distilled_samples(given, job, reading, count=count, config=recipe.config(DistillConfig))
        begun = _begin(given.net, samples, recipe, plan, chosen, job, format=format)
        with job.stage("verify"):  # find out before training what cannot be exported or run
            verify(lower(given.net, begun.plan, format=format), given.net, begun.apart.used, threads=threads)
        with job.stage("train"):
            training = train(given.net, begun.plan, begun.apart.used, config=chosen, batch_norms=batch_norms, job=job)
    trial = Trial.of(given.loaded, begun.apart, given=data is not None, metric=by, progress=progress)
    with job.stage("export"):
        source = "distilled" if data is None else "calibration"
        result = _trained(training, begun, job, format=format, source=source, trial=trial if measure else None)
        verify(result.model, result.net, result.samples, threads=threads)
    if measure:
        with job.stage("measure"):
            _ = result.quality, result.layers_in_file
        tell(result.warnings())
        warn_of_result(result)
    job.finish()
    return result


@dataclass(frozen=True, eq=False, kw_only=True)
class _Begun:
    """Where a training starts: the plan, its samples and those held out, and the first of them for statistics."""

    method: str
    plan: QuantPlan
    apart: Split
    calibration: Dataset
    portable: bool


def _begin(
    net: Model,
    samples: Dataset,
    recipe: Recipe,
    plan: QuantPlan | None,
    config: LsqPlusConfig,
    job: Job,
    *,
    format: str,
) -> _Begun:
    """Observe, and make the plan that the recipe's method starts from, where none is given."""

    def first(samples: Dataset) -> Dataset:
        return dataclasses.replace(samples, limit=min(samples.count, config.calibration))

    with job.stage("observe"):
        samples, observed = falling_back(
            net,
            samples,
            lambda some: observe(
                net,
                first(hold_out(some).used),
                threads=job.threads,
                executor=job.executor,
                progress=job.progress,
            ),
        )
    apart, view = hold_out(samples), GraphView(net)
    material = Material(view=view, recipe=recipe, observed=observed, samples=apart.used, format=format, job=job)
    plan = plan or registry.run(recipe.method, initial_plan(view, recipe, observed), material, config=config)
    return _Begun(method=recipe.method, plan=plan, apart=apart, calibration=first(apart.used), portable=recipe.portable)


def _recipe(method: str, has_data: bool, **overrides: Any) -> Recipe:
    """The recipe of a method that trains; the bits must be given."""
    if not registry.find(method).trains:
        raise UsageError(
            f"method '{method}' does not train: pass it to {command('qgraph quantize', 'qgraph.quantize')}"
        )
    recipe = choose_recipe(method, has_data, **overrides)
    if recipe.mixed:
        what = "weights" if recipe.mixes_weights else "activations"
        raise UsageError(
            f"fine-tuning chooses no bits: make a plan with {command('qgraph quantize', 'qgraph.quantize')} and "
            f"{option(what, 'mixed')}, and pass it with {option('start', Blank('PLAN'))}"
        )
    return recipe


def _check(net: Model, recipe: Recipe, config: LsqPlusConfig, batch_norms: Collection[str]) -> None:
    """Raise `UsageError` for what cannot be done, before the work begins."""
    layers, _ = choose_layers(GraphView(net), recipe.keep)
    if config.keep_bn and not any(layer.op == "Conv" and layer.output.name in batch_norms for layer in layers):
        raise UsageError(
            f"{net.source} has no BatchNormalization to keep after a quantized convolution: most exporters fold it away"
        )


def _trained(
    training: Training, begun: _Begun, job: Job, *, format: str, source: str, trial: Trial | None
) -> Finetuned:
    """The result of training that started from a plan."""
    net, plan = settle_biases(
        training.net, _complete(training, begun.plan, begun.method, begun.calibration, job.threads)
    )
    observed = observe(net, begun.calibration, threads=job.threads, progress=job.progress)
    if begun.portable:
        plan = made_portable(plan, GraphView(net), observed)
    return Finetuned(
        net=net,
        plan=plan,
        format=format,
        data=source,
        seconds=job.seconds,
        observed=observed,
        samples=begun.apart.used,
        threads=job.threads,
        trial=trial,
        schedule=training.schedule,
        epochs=training.epochs,
        best_epoch=training.best_epoch,
    )


def _given_plan(start: PlanLike | None, net: Model) -> QuantPlan | None:
    if start is None:
        return None
    plan = given_plan(start)
    plan.check_model(net.digest, net.source)
    return plan


def _complete(
    training: Training, before: QuantPlan, method: str, calibration: Dataset, threads: int | None
) -> QuantPlan:
    """The learned plan, plus the grids that no layer reads, fitted to what the trained network computes there."""
    net, learned = training.net, training.plan
    trained: Mapping[tuple[str, str], ActivationQuant] = {(a.tensor, a.role): a for a in learned.activations}
    missing = [a for a in before.activations if (a.tensor, a.role) not in trained]
    quantized = dataclasses.replace(net, ir_model=simulate(net, learned))
    names: dict[str, int | None] = {a.tensor: None for a in missing}
    observed = observe(quantized, calibration, tensors=names, histograms=False, threads=threads) if names else None

    def grid(a: ActivationQuant) -> ActivationQuant:
        if observed is None or (a.tensor, a.role) in trained:
            return trained[a.tensor, a.role]
        low, high = observed.range_of(a.tensor)
        return activation_grid(a.tensor, low, high, bits=a.bits, role=a.role)

    kept = dataclasses.replace(learned, kept_float=before.kept_float, recipe=method)
    return dataclasses.replace(kept, activations=tuple(map(grid, before.activations)))
