"""What each ingredient of ACIQ contributes: all 16 combinations of four, on any model (ACIQ, section 5.2 and Figure 4).

The naive baseline spans every channel's full range, with equal bits and no corrections. Four ingredients are switched
on or off: analytic clipping of activations, bias correction of weights (Eq. 13), and bits per channel by the 2/3-power
rule for weights and for activations (Eq. 10, quotas of bins). As in the paper, weights are never clipped, and their
correction needs no samples; in a deployed file, which cannot hold a fraction of a step, it is that of the norm alone.
The eight combinations with it are repeated with the correction that is the default here, which adds the expected change
of the output to the bias. First and last layers have 8 bits.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from qgraph.assess.evaluate import Evaluation, evaluate
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.aciq import refine as aciq
from qgraph.methods.aciq.config import AciqConfig, Allocation
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.recipe import check_format
from qgraph.plan.request import choose_recipe
from qgraph.running.progress import SILENT, Progress
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Reading, open_data

INGREDIENTS = ("clipping", "bias correction", "weight bits", "activation bits")
CORRECTION = INGREDIENTS[1]
BY_INPUTS = f"{CORRECTION} by input means"
CALIBRATING = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Which ingredients are used, in the order of `INGREDIENTS`, and the accuracy and SQNR with them.

    `by_inputs`: the bias correction is not the paper's but that of the expected output.
    """

    used: tuple[bool, ...]
    top1: float | None
    sqnr_db: float | None
    by_inputs: bool = False

    @property
    def named(self) -> tuple[tuple[str, bool], ...]:
        """Every ingredient and whether it is used."""
        return tuple(zip(INGREDIENTS, self.used, strict=True))

    @property
    def name(self) -> str:
        names = [BY_INPUTS if self.by_inputs and n == CORRECTION else n for n in INGREDIENTS]
        return " + ".join(n for n, on in zip(names, self.used, strict=True) if on) or "naive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """The float model's accuracy, the result of every combination, and the average effect of each ingredient.

    `by_inputs` are the combinations with bias correction once more, by the expected change of the output.
    """

    float_top1: float | None
    combinations: tuple[Combination, ...]
    by_inputs: tuple[Combination, ...] = ()

    def effects(self, measure: str) -> dict[str, float]:
        """For each ingredient, the mean gain in `top1` (points) or `sqnr_db` over the eight combinations without it."""
        worth = {c.used: getattr(c, measure) for c in self.combinations}
        other = {c.used: getattr(c, measure) for c in self.by_inputs}
        result = {}
        for index, name in enumerate(INGREDIENTS):
            pairs = [(used, (*used[:index], True, *used[index + 1 :])) for used in worth if not used[index]]
            result[name] = float(np.mean([worth[more] - worth[less] for less, more in pairs]))
            if name == CORRECTION and other:
                result[BY_INPUTS] = float(np.mean([other[more] - worth[less] for less, more in pairs]))
        return result

    def to_dict(self) -> dict[str, Any]:
        every = (*self.combinations, *self.by_inputs)
        measures = [m for m in ("top1", "sqnr_db") if all(getattr(c, m) is not None for c in every)]
        rows = [{**dataclasses.asdict(c), "name": c.name} for c in every]
        effects = {measure: self.effects(measure) for measure in measures}
        return {
            "ingredients": INGREDIENTS,
            "float_top1": self.float_top1,
            "combinations": rows[: len(self.combinations)],
            "by_inputs": rows[len(self.combinations) :],
            "average_effect": effects,
        }


@keeps_threads
def ablate(
    model: ModelLike,
    data: DataLike,
    *,
    calibration: DataLike | None = None,
    weights: int = 4,
    activations: int = 4,
    format: str = "float",
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Ablation:
    """Quantize with every combination of ingredients and measure each on `data`.

    Statistics come from up to 256 samples of `calibration` (by default `data`), without labels. The `format` "float"
    simulates a step per channel for every activation, as in the paper; "qdq" is what can be deployed, where only
    tensors between convolutions have one.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> network, samples = demo / "digits.onnx", demo / "digits_calibration.npz"
        >>> found = qgraph.ablate(network, samples, weights=3, activations=3, limit=32)
        >>> found.combinations[-1].name
        'clipping + bias correction + weight bits + activation bits'
        >>> found.effects("sqnr_db")["bias correction"] > 1
        True
    """
    check_format(format)
    net = prepare(model)
    samples = open_data(data, net, **reading)
    reading["limit"] = CALIBRATING
    source = data if calibration is None else calibration
    given = open_data(source, net, **reading)
    observed = observe(net, given, threads=threads, progress=progress)
    reference = evaluate(net, samples, against=net, threads=threads)

    def measured(plan: QuantPlan) -> Evaluation:
        quantized = dataclasses.replace(net, ir_model=lower(net, plan, format=format))
        return evaluate(quantized, samples, against=net, threads=threads)

    every = [*itertools.product((False, True), repeat=len(INGREDIENTS))]
    tried = [(used, False) for used in every]
    tried += [(used, True) for used in every if used[INGREDIENTS.index(CORRECTION)]]
    combinations = []
    with progress.stage("combining", len(tried)) as advance:
        for used, by_inputs in tried:
            bits = {"weights": weights, "activations": activations}
            worth = measured(combined(net, observed, used, **bits, format=format, by_inputs=by_inputs))
            combinations.append(
                Combination(used=used, top1=worth.top1, sqnr_db=worth.sqnr_db, by_inputs=by_inputs),
            )
            advance(1, combinations[-1].name)
    return Ablation(
        float_top1=reference.top1,
        combinations=tuple(combinations[: len(every)]),
        by_inputs=tuple(combinations[len(every) :]),
    )


def combined(
    net: Model,
    observed: Observations,
    used: tuple[bool, ...],
    *,
    weights: int,
    activations: int,
    format: str,
    by_inputs: bool = False,
) -> QuantPlan:
    """The plan with the ingredients in `used`; `by_inputs`: the bias correction that the input's means give."""
    clipping, correction, weight_bits, activation_bits = used
    clip = "aciq" if clipping else "max"
    recipe = choose_recipe("aciq", True, weights=weights, activations=activations, clip=clip)
    allocation: dict[tuple[bool, bool], Allocation] = {
        (False, False): "none",
        (True, False): "weights",
        (False, True): "activations",
        (True, True): "both",
    }
    config = AciqConfig(
        clip=clip,
        weight_clip="max",
        bias_correction=correction,
        allocate_bits=allocation[weight_bits, activation_bits],
        means="inputs" if by_inputs else "none" if format == "qdq" else "weights",
        quota="bins",
        channel_activations=True,
        deployable=format == "qdq",
    )
    view = GraphView(net)
    return aciq.refine(initial_plan(view, recipe, observed), view, observed, config=config)
