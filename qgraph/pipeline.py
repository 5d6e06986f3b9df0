"""The main job: a model in, a smaller one out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qgraph.clock import Clock
from qgraph.correct import correct_outputs
from qgraph.data import DataLike, Dataset, Preprocessing, open_data
from qgraph.errors import UsageError
from qgraph.export import export
from qgraph.gain import known_moments
from qgraph.graph import GraphView
from qgraph.initial import initial_plan
from qgraph.measure import LayerReport, layer_reports
from qgraph.mixed import Mixer
from qgraph.model import Model, ModelLike, load, normalise, raise_opset, save
from qgraph.observe import Observations, observe
from qgraph.plan import QuantPlan
from qgraph.progress import SILENT, Progress
from qgraph.qrater import SearchConfig
from qgraph.recipe import FORMATS, Recipe
from qgraph.refinement import refine
from qgraph.simulate import simulate
from qgraph.verify import verify
from qgraph.zeroq import DistillConfig, distill
from qgraph.zeroq.allocate import Allocation
from qgraph.zeroq.sensitivity import Sensitivity

DISTILLED = 32  # samples distilled where none are given (ZeroQ, section IV)


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A quantized model: its plan, its graph, and what each stage took."""

    net: Model
    plan: QuantPlan
    format: str
    data: str
    seconds: dict[str, float]
    observed: Observations | None = None
    samples: Dataset | None = None
    threads: int | None = None
    allocation: Allocation | None = None
    """Sensitivities, frontier and choice, where bits were mixed."""

    @cached_property
    def layers(self) -> tuple[LayerReport, ...]:
        """What became of every layer, with its predicted and measured error; measured on a few samples at first use."""
        return layer_reports(GraphView(self.net), self.plan, self.observed, self.samples, threads=self.threads)

    @cached_property
    def model(self) -> ir.Model:
        """The quantized model, as onnx-ir."""
        return lower(self.net, self.plan, format=self.format)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the file that `save` writes."""
        return int(ir.to_proto(self.model).ByteSize())

    def save(self, path: str | Path) -> int:
        """Write the model, whole or not at all; returns its size in bytes."""
        return save(self.model, path, source=self.net.source)

    def to_dict(self, *, output: str | None = None, nbytes: int | None = None) -> dict[str, Any]:
        """What `qgraph quantize --json` prints."""
        return {
            "output": output,
            "bytes": self.nbytes if nbytes is None else nbytes,
            "float_bytes": self.net.nbytes,
            "weight_bytes": sum(layer.weight_bytes for layer in self.layers),
            "data": self.data,
            "seconds": self.seconds,
            "layers": [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "weight_bits": layer.weight_bits,
                    "activation_bits": layer.activation_bits,
                    "predicted_sqnr_db": layer.predicted_sqnr_db,
                    "measured_sqnr_db": layer.measured_sqnr_db,
                }
                for layer in self.layers
            ],
            "kept_float": [{"name": k.name, "why": k.why} for k in self.plan.kept_float],
        }


def quantize(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str | None = None,
    format: str = "qdq",
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | None = None,
    executor: str = "local",
    on_better: Callable[[Result], object] | None = None,
    progress: Progress = SILENT,
    **overrides: Any,
) -> Result:
    """Quantize an ONNX model for onnxruntime on the CPU.

    Args:
        model: a path, `onnx.ModelProto` or onnx-ir model.
        data: calibration samples: a path (.npz, .npy, folder of images), arrays, or an iterable of batches.
        method: `minmax`, `aciq` (default with data), `zeroq` (default without: data are distilled from the model),
            `qrater` (found by measuring the task: see `search`), or `lsqplus` (trained: see `finetune`).
        format: `qdq` to deploy, `float` for a simulation in plain float operators.
        preprocessing: mean and std for images.
        limit: use at most this many samples.
        calibration: file of statistics: read if it exists, else written, so that observing is done once; it decides
            the plan alone, so that variants of a method are not tried on samples.
        opset: raise the model to this opset first.
        seed: of distilled data.
        resume: folder for the checkpoints of long stages; what it holds of the same job is continued.
        executor: where independent jobs run, `local` or `dask:ADDRESS`.
        on_better: called with every smaller result that a search for the smallest (`max_drop`) accepts on its way.
        overrides: `weights` (bits, "mixed" or None), `activations` (bits or None), `size_mb`, `clip`, `keep`, ...: the
            fields of `Recipe`.

    Raises:
        QGraphError: with a message that says what to do, for anything wrong with model, data or options.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': choose one of {', '.join(FORMATS)}")
    if method == "lsqplus":
        return _trained(
            model,
            data,
            format=format,
            preprocessing=preprocessing,
            limit=limit,
            opset=opset,
            seed=seed,
            threads=threads,
            resume=resume,
            progress=progress,
            **overrides,
        )
    clock = Clock()
    given = gather(
        model,
        data,
        method=method,
        preprocessing=preprocessing,
        limit=limit,
        calibration=calibration,
        opset=opset,
        seed=seed,
        threads=threads,
        resume=resume,
        progress=progress,
        clock=clock,
        overrides=overrides,
    )
    net, recipe, observed = given.net, given.recipe, given.observed
    with clock.stage("plan"):
        # a file of statistics decides alone
        plan = given.plan(format=format, samples=None if calibration is not None else given.samples)

    def made(plan: QuantPlan, allocation: Allocation | None) -> Result:
        return Result(
            net=net,
            plan=plan,
            format=format,
            data=given.source,
            seconds=clock.seconds,
            observed=observed,
            samples=given.samples,
            threads=threads,
            allocation=allocation,
        )

    allocation = None
    if recipe.mixed:
        mixer = given.mixer(
            format=format,
            on_better=None if on_better is None else lambda mixed: on_better(made(mixed, None)),
            executor=executor,
            resume=resume,
            threads=threads,
            progress=progress,
        )
        plan, allocation = mixer.mix(plan, clock.stage)
    if recipe.ingredients:
        with clock.stage("search"):
            options = {"threads": threads, "folder": resume, "progress": progress}
            plan = _searched(plan, given, seed=seed, executor=executor, **options)
    if recipe.correct_outputs:
        if given.samples is None:
            raise UsageError("--correct-outputs measures on samples: pass --data, a calibration file is not enough")
        with clock.stage("correct"):
            plan = correct_outputs(plan, given.view, given.samples, threads=threads, progress=progress)
    with clock.stage("export"):
        result = made(plan, allocation)
        _ = result.model
    with clock.stage("verify"):
        verify(result.model, net, result.samples, threads=threads)
    clock.finish()
    return result


def _trained(model: ModelLike, data: DataLike | None, **options: Any) -> Result:
    from qgraph.finetuning import finetune  # which builds on this module

    return finetune(model, data, **options)


def measure_sensitivity(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    method: str | None = None,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | None = None,
    executor: str = "local",
    progress: Progress = SILENT,
    **overrides: Any,
) -> Sensitivity:
    """How far the outputs move when one layer alone is quantized, for every layer and each of `bits` (ZeroQ, Eq. 2).

    The arguments are those of `quantize`; without data, samples are distilled from the model.
    """
    given = gather(
        model,
        data,
        method=method,
        preprocessing=preprocessing,
        limit=limit,
        seed=seed,
        threads=threads,
        resume=resume,
        progress=progress,
        overrides={**overrides, "weights": "mixed", "activations": None},
    )
    mixer = given.mixer(executor=executor, resume=resume, threads=threads, progress=progress)
    return mixer.sensitivity(mixer.menu())


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

    def plan(self, *, format: str = "qdq", samples: Dataset | None = None) -> QuantPlan:
        """The plan of the recipe's method; where bits are to be mixed, the one with 8 bits everywhere."""
        first = initial_plan(self.view, self.recipe, self.observed)
        return refine(first, self.view, self.observed, self.recipe, format=format, samples=samples)

    def mixer(self, *, format: str = "qdq", **options: Any) -> Mixer:
        if self.samples is None:
            raise UsageError("mixed bits need samples: pass --data, or --method zeroq")
        return Mixer(
            net=self.net,
            recipe=self.recipe,
            data=self.samples,
            norms=known_moments(normalise(self.loaded, fold_bn=False)),
            refine=lambda plan, recipe: refine(plan, self.view, self.observed, recipe),
            lower=lambda plan: lower(self.net, plan, format=format),
            **options,
        )


def gather(
    model: ModelLike,
    data: DataLike | None,
    *,
    method: str | None,
    overrides: dict[str, Any],
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    resume: str | Path | None = None,
    progress: Progress = SILENT,
    clock: Clock | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
) -> Gathered:
    """Load, distil where there are no data, and observe: all that comes before a plan. Arguments as for `quantize`."""
    clock = clock or Clock()
    measured = calibration is not None and Path(calibration).exists()
    recipe = Recipe.choose(method, data is not None or measured, **overrides)
    with clock.stage("load"):
        loaded = load(model)
        net = prepare(loaded, opset=opset)
        view = GraphView(net)
        recipe.choose_layers(view)  # what cannot be done is said before the work begins
        samples = None if data is None else open_data(data, net, preprocessing=preprocessing, limit=limit)
    if recipe.max_drop is not None and (samples is None or samples.labels is None):
        raise UsageError("--max-drop measures accuracy: pass --data with an array 'labels'")
    if samples is None and recipe.needs_data and (recipe.mixed or not measured):
        with clock.stage("distill"):
            inputs = distilled_inputs(
                loaded, count=DISTILLED, seed=seed, threads=threads, resume=resume, progress=progress
            )
            samples = open_data(inputs, net)
    with clock.stage("observe"):
        observed = _observations(net, recipe, samples, calibration, threads, progress)
    source = _source(observed, given=data is not None or measured)
    return Gathered(loaded=loaded, net=net, view=view, recipe=recipe, samples=samples, observed=observed, source=source)


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
    """Samples distilled from the model (ZeroQ) with progress shown; warns where the model has nothing to distil
    from.
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


def prepare(model: ModelLike, *, opset: int | None = None, fold_bn: bool = True) -> Model:
    """Load and normalise, at the opset that quantized graphs need or a higher one asked for."""
    return raise_opset(normalise(load(model), fold_bn=fold_bn), opset)


def _searched(plan: QuantPlan, given: Gathered, *, seed: int, executor: str, **options: Any) -> QuantPlan:
    """What Q-Rater finds from `plan`, with its default settings; `qgraph.search` has all of them."""
    from qgraph.search import polish  # which builds on this module

    if given.samples is None:
        raise UsageError("a search measures the task on samples: pass --data, a calibration file is not enough")
    config = SearchConfig(ingredients=given.recipe.ingredients, fine=True, seed=seed)
    return polish(plan, given.net, given.samples, config=config, executor=executor, **options).plan


def apply(model: ModelLike, plan: QuantPlan, *, format: str = "qdq", opset: int | None = None) -> Model:
    """The model quantized as a plan says, loaded once in onnxruntime; the same bytes as the `quantize` of the plan."""
    net = prepare(model, opset=opset, fold_bn=plan.fold_bn)
    lowered = lower(net, plan, format=format)
    verify(lowered, net, None)
    return Model(ir_model=lowered, source=net.source, nbytes=net.nbytes, digest=net.digest)


def lower(net: Model, plan: QuantPlan, *, format: str) -> ir.Model:
    """The plan turned into nodes, in the format asked for."""
    return export(net, plan) if format == "qdq" else simulate(net, plan)


def _source(observed: Observations | None, *, given: bool) -> str:
    if observed is None:
        return "none"
    return "calibration" if given else "distilled"


def _observations(
    net: Model,
    recipe: Recipe,
    data: Dataset | None,
    calibration: str | Path | None,
    threads: int | None,
    progress: Progress,
) -> Observations | None:
    if calibration is not None and Path(calibration).exists():
        observed = Observations.load(calibration)
        observed.check_model(net)
        return observed
    if data is None:
        return None
    histograms = calibration is not None or recipe.needs_histograms
    observed = observe(net, data, histograms=histograms, threads=threads, progress=progress)
    if calibration is not None:
        observed.save(calibration)
    return observed
