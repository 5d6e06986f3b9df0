"""Everything that precedes a plan: the normalised network, samples (given or distilled), and their statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qgraph.assess.coverage import unseen
from qgraph.assess.judge import Judge
from qgraph.assess.metric import Metric, MetricLike, load_metric
from qgraph.errors import NothingToDistilError, UsageError
from qgraph.graph.sites import GraphView, choose_layers
from qgraph.jobs.distil import distilled_samples
from qgraph.jobs.given import Given, open_given
from qgraph.jobs.trial import Trial, tell
from qgraph.lowering.lower import lower
from qgraph.methods.zeroq.config import DistillConfig, MixConfig
from qgraph.observe.known_laws import with_known_laws
from qgraph.observe.material import Material, check_needs
from qgraph.observe.propagation import Moments, known_moments
from qgraph.observe.spatial_means import with_spread_means
from qgraph.observe.statistics import Observations, observe, watched_tensors
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import registry
from qgraph.plan.blocks import BLOCK_OPSET
from qgraph.plan.changes import bits_for, parsed
from qgraph.plan.dynamic import mostly_products
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import MAX_BITS, QuantPlan
from qgraph.plan.recipe import FEW_BITS, Recipe
from qgraph.plan.request import choose_recipe
from qgraph.plan.words import SECOND_ORDER
from qgraph.running.job import Job
from qgraph.running.wording import option
from qgraph.samples.dataset import DataLike, Dataset, Reading, take_reading
from qgraph.samples.fallback import falling_back
from qgraph.samples.split import Split, calibrating, hold_out

if TYPE_CHECKING:
    from qgraph.methods.zeroq.mixed_precision import Better, Mixer


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
        plan = initial_plan(self.view, self.recipe, self.observed)
        if self.recipe.balance and self.observed is not None:
            from qgraph.methods.balance.balanced import balanced

            plan = balanced(plan, self.view, self.observed)
        if self._counts_lookups and self.samples is not None:
            from qgraph.methods.tables.lookups import with_bits_by_lookups

            plan = with_bits_by_lookups(plan, self.view, self.samples, threads=self.job.threads)
        plan = registry.run(self.recipe.method, plan, self)
        if self._has_nothing_to_read:
            plan = self._by_what_is_likely(plan)
        return plan

    def _by_what_is_likely(self, plan: QuantPlan) -> QuantPlan:
        """The plan by what is expected of operands before any sample is seen."""
        from qgraph.methods.without_data.evenly import evenly
        from qgraph.methods.without_data.expected import SHIFTED, expected_operands
        from qgraph.methods.without_data.floor import too_few_bits
        from qgraph.methods.without_data.groups import with_groups_for_noisy_weights
        from qgraph.methods.without_data.widths import with_small_layers_at_8_bits

        quantized = (self.view.by_name[quant.name] for quant in plan.layers)
        layers = [layer for layer in quantized if layer.op in SHIFTED and not layer.weight_only]
        known = known_moments(normalise(self.loaded, fold_bn=False))
        expected = expected_operands(self.net, layers, known, threads=self.job.threads)
        recipe = self.recipe
        if isinstance(recipe.weights, int) and recipe.allocate_bits != "none":
            changes = parsed(recipe.changes)
            asked = [q.name for q in plan.layers if bits_for(changes, q.name, "weights") is not None]
            plan = with_small_layers_at_8_bits(plan, self.view, expected, bits=recipe.weights, asked=asked)
            if recipe.weights > FEW_BITS and recipe.group is None and recipe.per_channel:
                plan = with_groups_for_noisy_weights(plan, self.view, expected)
        tell(too_few_bits(plan, self.view, expected))
        return evenly(plan, self.view, expected)

    @property
    def _has_nothing_to_read(self) -> bool:
        """Whether weights alone are quantized without samples, and may be rounded by what is likely of operands."""
        recipe, nothing = self.recipe, self.samples is None and self.observed is None
        free = recipe.rounding in (None, "nearest") and recipe.bias_correction and not recipe.mixed
        return nothing and free and recipe.static_bits is None

    @property
    def _counts_lookups(self) -> bool:
        """Whether rows of tables get bits by how often samples read them: real ones, which the plan may depend on."""
        recipe = self.recipe
        free = recipe.allocate_bits != "none" and not (recipe.mixed or recipe.ingredients) and recipe.per_channel
        return free and self.variants and self.source == "calibration"

    def _at(self, plan: QuantPlan, recipe: Recipe) -> QuantPlan:
        """The plan that the method makes for the bits of another recipe."""
        return registry.run(recipe.method, plan, dataclasses.replace(self, recipe=recipe, format="qdq", variants=False))

    def mixer(self, *, on_better: Better | None = None) -> Mixer:
        """The object that chooses the bits of every layer."""
        from qgraph.methods.zeroq.mixed_precision import Mixer

        return Mixer(
            net=self.net,
            recipe=self.recipe,
            data=self.need_samples("mixed bits are measured on samples"),
            norms=known_moments(normalise(self.loaded, fold_bn=False)),
            refine=self._at,
            lower=lambda plan: lower(self.net, plan, format=self.format),
            judge=self._judge(),
            observed=self.observed,
            judging=self.judging,
            on_better=on_better,
            job=self.job,
        )

    def _judge(self) -> Judge:
        """Measures a candidate on the task."""
        return Judge(
            reference=self.net,
            samples=self.judging or self.need_samples(f"{option('max_drop')} is measured on samples"),
            metric=self.trial.metric,
            threads=self.job.threads,
            progress=self.job.progress,
        )


def gather(
    model: ModelLike,
    data: DataLike | None,
    job: Job | None = None,
    *,
    method: str | None = None,
    format: str | None = None,
    calibration: str | Path | None = None,
    opset: int | None = None,
    metric: MetricLike | None = None,
    **overrides: Any,
) -> Gathered:
    """Load the model, distil samples where none are given, and observe. The arguments are those of `quantize`."""
    job, reading = job or Job(), take_reading(overrides)
    measured = calibration is not None and Path(calibration).exists()
    recipe = choose_recipe(method, data is not None or measured, **overrides)
    by = None if metric is None else load_metric(metric)
    with job.stage("load"):
        least = BLOCK_OPSET if recipe.target == "decode" else 0
        given = open_given(model, data, opset=opset, least_opset=least, fold_bn=recipe.fold_bn, **reading)
        view = GraphView(given.net)
        choose_layers(view, recipe.keep)  # fail before the work begins
    free = given.samples is None and not measured and method is None and "activations" not in overrides
    free = free and recipe.target != "decode" and not (recipe.mixed or recipe.ingredients or recipe.correct_outputs)
    if free:
        recipe = _without_data(recipe, view, given.loaded)
    check_needs(recipe.method, given.loaded, given.samples)
    _check_task(recipe, given.samples, by)
    samples = given.samples
    if samples is None and recipe.needs_data and (recipe.mixed or not measured):
        with job.stage("distill"):
            recipe, samples = _distilled(given, recipe, reading, job, free=free)
    laws = data is None and samples is not None and recipe.config(MixConfig).laws
    known = known_moments(normalise(given.loaded, fold_bn=False)) if laws else {}
    with job.stage("observe"):
        samples, observed = falling_back(
            given.net,
            samples,
            lambda some: _observations(given.net, recipe, _parted(some, recipe)[1], calibration, job, laws, known),
        )
    apart, samples, judging = _parted(samples, recipe)
    if data is not None and samples is not None:
        tell(unseen(given.net, samples, lambda: known_moments(normalise(given.loaded, fold_bn=False))))
    return Gathered(
        loaded=given.loaded,
        view=view,
        recipe=recipe,
        samples=samples,
        trial=Trial.of(given.loaded, apart, given=data is not None, metric=by, progress=job.progress),
        judging=judging,
        observed=observed,
        source=_source(observed, given=data is not None or measured),
        format=format or recipe.format,
        variants=calibration is None,  # with a file of statistics, the statistics alone decide
        job=job,
    )


def _distilled(
    given: Given, recipe: Recipe, reading: Reading, job: Job, *, free: bool
) -> tuple[Recipe, Dataset | None]:
    """The recipe and distilled samples; dynamic products instead, if the caller left them `free` and there are none."""
    try:
        config, count = recipe.config(DistillConfig), recipe.config(MixConfig).count
        rounding = _rounds(recipe)
        made = distilled_samples(given, job, reading, count=count, rounding=rounding, noise=not free, config=config)
        return recipe, made
    except NothingToDistilError as missing:
        if not free:
            raise
        tell([f"only weights are quantized, and products find the grids of operands in every run: {missing}"])
        return dataclasses.replace(recipe, activations="dynamic"), None


def _rounds(recipe: Recipe) -> bool:
    """Whether codes may be chosen by samples: to second order, asked for or on offer below 8 bits."""
    few = recipe.weights != MAX_BITS or recipe.activations not in (None, MAX_BITS, "dynamic")
    return SECOND_ORDER in recipe.methods or (few and SECOND_ORDER in recipe.offered)


def _without_data(recipe: Recipe, view: GraphView, loaded: Model) -> Recipe:
    """The recipe, with dynamic products where there is nothing to distil samples from: in transformers."""
    layers, _ = choose_layers(view, recipe.keep)
    distillable = not mostly_products(layers) or known_moments(normalise(loaded, fold_bn=False))
    return recipe if distillable else dataclasses.replace(recipe, activations="dynamic")


def _check_task(recipe: Recipe, samples: Dataset | None, metric: Metric | None) -> None:
    """Raise `UsageError` where the task is the budget and nothing measures it."""
    if recipe.max_drop is not None and (samples is None or (metric is None and not samples.labelled)):
        raise UsageError(
            f"{option('max_drop')} measures accuracy: pass {option('data')} with labels, or a {option('metric')}"
        )


def _parted(samples: Dataset | None, recipe: Recipe) -> tuple[Split | None, Dataset | None, Dataset | None]:
    """What is held out, samples that calibrate and, with `max_drop`, samples that judge: half of them or more."""
    if samples is None:
        return None, None, None
    apart = hold_out(samples)
    if recipe.max_drop is None:
        return apart, apart.used, None
    return apart, *calibrating(apart.used)


def _source(observed: Observations | None, *, given: bool) -> str:
    if observed is None:
        return "none"
    return "calibration" if given else "distilled"


def _observations(
    net: Model,
    recipe: Recipe,
    data: Dataset | None,
    calibration: str | Path | None,
    job: Job,
    laws: bool,
    known: Mapping[str, Moments],
) -> Observations | None:
    """The statistics in the file, or of the samples; with `laws`, corrected by what is known without real samples.

    That are the `known` moments of BatchNormalization, and how far apart means over images lie. Below 8 bits, steps
    that reach so far lose more than what passes their ends.
    """
    if calibration is not None and Path(calibration).exists():
        observed = Observations.load(calibration)
        observed.check_model(net)
        return observed
    if data is None:
        return None
    histograms = calibration is not None or recipe.needs_histograms
    observed = observe(
        with_spread_means(net, data, threads=job.threads) if laws and recipe.static_bits == MAX_BITS else net,
        data,
        tensors=watched_tensors(GraphView(net)),
        histograms=histograms,
        threads=job.threads,
        executor=job.executor,
        progress=job.progress,
    )
    observed = with_known_laws(observed, net, known)
    if calibration is not None:
        observed.save(calibration)
    return observed
