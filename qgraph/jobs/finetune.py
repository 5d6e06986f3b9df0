"""Quantization-aware training: from an ONNX file to a trained and quantized one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgraph.assess.metric import MetricLike, load_metric
from qgraph.assess.verify import verify
from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView, choose_layers
from qgraph.jobs.below import warn_of_result
from qgraph.jobs.distil import distilled_samples
from qgraph.jobs.result import Result
from qgraph.jobs.trial import Trial, tell
from qgraph.lowering.lower import lower
from qgraph.lowering.simulate import simulate
from qgraph.methods.lsqplus.biases import settle_biases
from qgraph.methods.lsqplus.config import LsqPlusConfig, Schedule
from qgraph.methods.lsqplus.holdout import Judgement
from qgraph.methods.lsqplus.step import check_trainable
from qgraph.methods.lsqplus.train import Training, train
from qgraph.observe.material import Material, check_needs
from qgraph.observe.propagation import known_moments
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import prepare
from qgraph.plan import registry
from qgraph.plan.grids import activation_grid, initial_plan
from qgraph.plan.plan import ActivationQuant, QuantPlan
from qgraph.plan.recipe import Recipe, check_format
from qgraph.running.job import Job
from qgraph.running.progress import SILENT, Progress
from qgraph.running.store import hold
from qgraph.samples.dataset import DataLike, Dataset, open_data
from qgraph.samples.preprocessing import Preprocessing
from qgraph.samples.split import hold_out

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


def finetune(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str = "lsqplus",
    config: LsqPlusConfig | None = None,
    start: QuantPlan | str | Path | None = None,
    format: str = "qdq",
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int] | None = None,
    opset: int | None = None,
    seed: int = 0,
    measure: bool = True,
    metric: MetricLike | None = None,
    threads: int | None = None,
    resume: str | Path | None = None,
    progress: Progress = SILENT,
    **overrides: Any,
) -> Finetuned:
    """Train the weights of a model together with the scales and offsets of its grids (LSQ+).

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: training samples, with or without labels; by default distilled from the model.
        method: makes the plan that training starts from: `lsqplus`, or another method that trains.
        config: settings of the training; epochs and rate depend on the fewest bits unless they are given.
        start: a plan for this model whose grids training starts from; by default grids are initialised.
        format, preprocessing, limit, batch, shapes, batch_axes, opset, seed, measure, metric, threads, resume:
            as in `quantize`.
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
    chosen = config or LsqPlusConfig()
    job = Job(seed=seed, threads=threads, resume=resume, progress=progress)
    recipe = _recipe(method, data is not None, **overrides)
    by = None if metric is None else load_metric(metric)
    with job.stage("load"):
        loaded = load(model)
        net = prepare(loaded, opset=opset)
        samples = (
            None
            if data is None
            else open_data(
                data, net, preprocessing=preprocessing, limit=limit, batch=batch, shapes=shapes, batch_axes=batch_axes
            )
        )
        check_needs(method, loaded, samples)
        given = _given_plan(start, net)
        batch_norms = known_moments(normalise(loaded, fold_bn=False)).keys()
        _check(net, recipe, chosen, batch_norms, distilling=samples is None)
    with hold(resume):
        if samples is None:
            with job.stage("distill"):
                samples = distilled_samples(loaded, net, job, count=limit or DISTILLED, shapes=shapes, batch=batch)
        apart = hold_out(samples)
        samples = apart.used
        trial = Trial.of(loaded, apart, given=data is not None, metric=by, progress=progress) if measure else None
        calibration = dataclasses.replace(samples, limit=min(samples.count, chosen.calibration))
        with job.stage("observe"):
            observed = observe(net, calibration, threads=threads, progress=progress)
        view = GraphView(net)
        material = Material(view=view, recipe=recipe, observed=observed, samples=samples, format=format, job=job)
        plan = given or registry.run(method, initial_plan(view, recipe, observed), material, config=chosen)
        with job.stage("verify"):  # find out before training what cannot be exported or run
            verify(lower(net, plan, format=format), net, samples, threads=threads)
        with job.stage("train"):
            training = train(
                net,
                plan,
                samples,
                config=chosen,
                batch_norms=batch_norms,
                seed=seed,
                threads=threads,
                resume=resume,
                progress=progress,
            )
    with job.stage("export"):
        result = _trained(training, plan, samples, calibration, job, format=format, distilled=data is None, trial=trial)
        verify(result.model, result.net, samples, threads=threads)
    if measure:
        with job.stage("measure"):
            _ = result.quality, result.layers_in_file
        tell(result.warnings())
        warn_of_result(result)
    job.finish()
    return result


def _recipe(method: str, has_data: bool, **overrides: Any) -> Recipe:
    """The recipe of a method that trains; the bits must be given."""
    if not registry.find(method).trains:
        raise UsageError(f"method '{method}' does not train: use qgraph quantize --method {method}")
    recipe = Recipe.choose(method, has_data, **overrides)
    if recipe.mixed:
        raise UsageError(
            "fine-tuning chooses no bits: write a plan with qgraph quantize --weights mixed --plan PLAN.json, and pass "
            "it with --start PLAN.json"
        )
    return recipe


def _check(
    net: Model, recipe: Recipe, config: LsqPlusConfig, batch_norms: Collection[str], *, distilling: bool
) -> None:
    """Raise `UsageError` for what cannot be done, before the work begins."""
    layers, _ = choose_layers(GraphView(net), recipe.keep)
    if config.keep_bn and not any(layer.op == "Conv" and layer.output.name in batch_norms for layer in layers):
        raise UsageError(
            f"{net.source} has no BatchNormalization to keep after a quantized convolution: most exporters fold it away"
        )
    if distilling:
        check_trainable(net, layers, config)


def _trained(
    training: Training,
    before: QuantPlan,
    samples: Dataset,
    calibration: Dataset,
    job: Job,
    *,
    format: str,
    distilled: bool,
    trial: Trial | None,
) -> Finetuned:
    """The result of training that started from the plan `before`."""
    net, plan = settle_biases(training.net, _complete(training, before, calibration, job.threads))
    return Finetuned(
        net=net,
        plan=plan,
        format=format,
        data="distilled" if distilled else "calibration",
        seconds=job.seconds,
        observed=observe(net, calibration, threads=job.threads, progress=job.progress),
        samples=samples,
        threads=job.threads,
        trial=trial,
        schedule=training.schedule,
        epochs=training.epochs,
        best_epoch=training.best_epoch,
    )


def _given_plan(start: QuantPlan | str | Path | None, net: Model) -> QuantPlan | None:
    if start is None:
        return None
    plan = start if isinstance(start, QuantPlan) else QuantPlan.load(start)
    plan.check_model(net.digest, net.source)
    return plan


def _complete(training: Training, before: QuantPlan, calibration: Dataset, threads: int | None) -> QuantPlan:
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

    kept = dataclasses.replace(learned, kept_float=before.kept_float)
    return dataclasses.replace(kept, activations=tuple(map(grid, before.activations)))
