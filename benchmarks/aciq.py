"""ACIQ on networks: accuracy of deployed files, its clip against others, predictions, and the mean of weights.

Uses 256 training images without labels, and `--limit` test images (10,000 by default). `--part` runs one table; the
ablation is `--part ablation --model NAME`, with all 16 combinations in simulation.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import qgraph
import qmath
from benchmarks.common import CIFAR, arguments, images, in_turn, report, shared
from qgraph.assess.ablation import ablate
from qgraph.assess.evaluate import evaluate
from qgraph.assess.layer_errors import measured_power, predicted_noise
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.aciq import refine as aciq
from qgraph.methods.aciq.clip import clip_activations, clip_ranges, prior_rejected
from qgraph.methods.aciq.corrections import correct_norm, correct_shift
from qgraph.observe.statistics import Observations, observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import prepare
from qgraph.plan.grids import activation_grid, initial_plan
from qgraph.plan.plan import ActivationQuant, QuantPlan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset, open_data

MODELS = ("resnet20", "resnet32", "relu6_dw", "silu_se")
SETTINGS = ((8, 8), (4, 8), (8, 4), (4, 4))
Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A network with its calibration statistics and the test images."""

    name: str
    net: Model
    data: Dataset
    observed: Observations
    test: Any

    @classmethod
    def of(cls, name: str, limit: int | None) -> Case:
        net = prepare(load(shared("models", f"cifar10_{name}.onnx")))
        data = open_data(images("cifar10_train20k", 256)[0], net, preprocessing=CIFAR)
        test = dict(zip(("images", "labels"), images("cifar10_test", limit), strict=True))
        return cls(name=name, net=net, data=data, observed=observe(net, data), test=test)

    @property
    def view(self) -> GraphView:
        return GraphView(self.net)

    def start(self, **options: Any) -> QuantPlan:
        return initial_plan(self.view, choose_recipe("aciq", True, **options), self.observed)

    def top1(self, model: Model) -> float:
        result = evaluate(model, self.test, preprocessing=CIFAR).top1
        assert result is not None
        return result

    def worth(self, plan: QuantPlan, *, format: str = "qdq") -> float:
        return self.top1(dataclasses.replace(self.net, ir_model=lower(self.net, plan, format=format)))


def accuracy(case: Case) -> Rows:
    """The drop and size of the deployed file, and the time to calibrate and write it, relative to a float pass."""
    session = Session(case.net.ir_model)
    best, rows = case.top1(case.net), []

    def float_pass() -> None:
        for batch in case.data.batches(32):
            session.run_list(batch.feeds)

    for weights, activations in SETTINGS:
        options: dict[str, Any] = {"weights": weights, "activations": activations, "rounding": "nearest"}
        results: list[qgraph.Result] = []

        def ours(options: dict[str, Any] = options, results: list[qgraph.Result] = results) -> None:
            results.append(qgraph.quantize(case.net.ir_model, case.data, **options))

        seconds = in_turn({"float": float_pass, "ours": ours}, runs=3)
        top1 = case.top1(dataclasses.replace(case.net, ir_model=results[-1].model))
        rows.append(
            {
                "model": case.name,
                "setting": f"W{weights}A{activations}",
                "float": best,
                "top-1": top1,
                "drop": best - top1,
                "bytes": results[-1].nbytes,
                "seconds": seconds["ours"],
                "float passes": seconds["ours"] / seconds["float"],
                "over 3 passes + 1 s": seconds["ours"] / (3 * seconds["float"] + 1),
            }
        )
    return rows


def closed_form_clips(plan: QuantPlan, observed: Observations, *, bits: int) -> dict[str, float]:
    """The paper's clip of every tensor with so many bits: a constant times b, which is 2 E[x+] after a ReLU."""
    tensors = [a.tensor for a in plan.activations if a.bits == bits]
    after_relu = np.array([observed[name].min >= 0 for name in tensors])
    means = np.array([observed[name].mean_abs for name in tensors])
    found = np.where(after_relu, qmath.laplace_clip(2 * means, bits, relu=True), qmath.laplace_clip(means, bits))
    return dict(zip(tensors, found.tolist(), strict=True))


def in_closed_form(plan: QuantPlan, observed: Observations, *, bits: int) -> QuantPlan:
    """The plan with activations of so many bits clipped in closed form, within the range of their values."""
    limits = closed_form_clips(plan, observed, bits=bits)

    def clip(grid: ActivationQuant) -> ActivationQuant:
        if grid.bits != bits:
            return grid
        known, limit = observed[grid.tensor], limits[grid.tensor]
        low, high = max(-limit, float(known.min)), min(limit, float(known.max))
        return activation_grid(grid.tensor, low, high, bits=bits, role=grid.role)

    return plan.map_activations(clip)


def clips(case: Case) -> Rows:
    """The accuracy and relative time of every clip, for 4-bit activations and 8-bit weights.

    The closed form is ACIQ as in the paper: a constant times the Laplace scale of every tensor, from the statistics of
    one pass. After a ReLU, half of the law's mass is at zero, so that the scale is b = 2 E[x]. "aciq" makes a range
    from the moments of each prior, takes the one with the smaller error on the histogram, and compares that with the
    least possible error.
    """
    plan = case.start(weights=8, activations=4)
    found = [case.observed[a.tensor].histogram for a in plan.activations if a.bits == 4]
    histograms = [histogram for histogram in found if histogram is not None]
    shapes = {"bits": [4] * len(histograms), "one_sided": [True] * len(histograms)}

    def closed_form() -> None:
        closed_form_clips(plan, case.observed, bits=4)

    def on_histograms(method: str) -> Callable[[], None]:
        return lambda: clip_ranges(histograms, method=method, **shapes)  # type: ignore[arg-type]

    jobs = {method: on_histograms(method) for method in ("aciq", "kl", "mse", "percentile", "max")}
    seconds = in_turn({"closed form": closed_form, **jobs}, runs=5)
    rows = []
    for method in ("closed form", *jobs):
        clipped = (
            in_closed_form(plan, case.observed, bits=4)
            if method == "closed form"
            else clip_activations(plan, case.view, case.observed, method=method)
        )
        rows.append(
            {
                "model": case.name,
                "clip": method,
                "top-1": case.worth(clipped, format="float"),
                "ms": 1e3 * seconds[method],
                "/ aciq": seconds[method] / seconds["aciq"],
                "/ closed form": seconds[method] / seconds["closed form"],
            }
        )
    return rows


def predictions(case: Case) -> Rows:
    """Predicted and measured errors of layers whose operand's prior was accepted, on all calibration samples.

    Weights have 8 bits, so that the errors are those of the activations.
    """
    rows = []
    for bits in (3, 4):
        plan = aciq.refine(case.start(weights=8, activations=bits), case.view, case.observed)
        accepted = {
            a.tensor
            for a in plan.activations
            if a.bits == bits and not prior_rejected(case.observed[a.tensor], bits=bits)
        }
        predicted = predicted_noise(case.view, plan, case.observed)
        measured = measured_power(case.view, plan, case.data, samples=case.data.count)
        gaps = {name: abs(10 * math.log10(predicted[name] / noise)) for name, (_, noise) in measured.items()}
        of = {layer.name: str(layer.input.name) for layer in case.view.layers}
        off = {name: gap for name, gap in gaps.items() if of[name] in accepted}
        rows.append(
            {
                "model": case.name,
                "activation bits": bits,
                "layers": len(gaps),
                "prior accepted": len(off),
                "within 1 dB": sum(gap <= 1 for gap in off.values()),
                "%": 100 * sum(gap <= 1 for gap in off.values()) / max(len(off), 1),
                "all within 1 dB": sum(gap <= 1 for gap in gaps.values()),
            }
        )
    return rows


def means(case: Case) -> Rows:
    """The mean of weights (Eq. 13): ignored, in an asymmetric zero point, or in the bias by the expected input."""
    options = {"weights": 4, "activations": 8}
    symmetric = case.start(symmetric=True, **options)
    variants = {
        "norm alone": correct_norm(symmetric, case.view),
        "zero point (asymmetric weights)": correct_norm(case.start(symmetric=False, **options), case.view),
        "expected input in the bias": correct_shift(correct_norm(symmetric, case.view), case.view, case.observed),
        "both": correct_shift(
            correct_norm(case.start(symmetric=False, **options), case.view), case.view, case.observed
        ),
    }
    return [{"model": case.name, "mean term": name, "top-1": case.worth(plan)} for name, plan in variants.items()]


def nodata(case: Case) -> Rows:
    """W4A4 calibrated on 256 training images, and on samples distilled from the model alone."""
    with_data = qgraph.quantize(case.net.ir_model, case.data, weights=4, activations=4, rounding="nearest")
    path = shared("models", f"cifar10_{case.name}.onnx")
    without = qgraph.quantize(path, method="zeroq", weights=4, activations=4, rounding="nearest")
    best = case.top1(case.net)
    drops = [best - case.worth(result.plan) for result in (with_data, without)]
    return [{"model": case.name, "drop, images": drops[0], "drop, no data": drops[1], "more": drops[1] - drops[0]}]


def ablation(name: str, limit: int | None, format: str) -> Rows:
    """All 16 combinations, 8 once more with the other bias correction, and the average effect of each ingredient."""
    test = dict(zip(("images", "labels"), images("cifar10_test", limit), strict=True))
    result = ablate(
        shared("models", f"cifar10_{name}.onnx"),
        test,
        calibration=images("cifar10_train20k", 256)[0],
        format=format,
        preprocessing=CIFAR,
    )
    tried = (*result.combinations, *result.by_inputs)
    rows = [{"model": name, "ingredients": c.name, "top-1": c.top1, "SQNR dB": c.sqnr_db} for c in tried]
    gained, quieter = result.effects("top1"), result.effects("sqnr_db")
    effects = [
        {"model": name, "ingredients": f"average effect: {n}", "top-1": gained[n], "SQNR dB": quieter[n]}
        for n in gained
    ]
    return rows + effects


def side_by_side(rows: Rows) -> Rows:
    """The ablations of several networks in one table."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = table.setdefault(row["ingredients"], {"ingredients": row["ingredients"]})
        line |= {f"{row['model']}, top-1": row["top-1"], f"{row['model']}, SQNR dB": row["SQNR dB"]}
    return list(table.values())


PARTS: dict[str, Callable[[Case], Rows]] = {
    "accuracy": accuracy,
    "clips": clips,
    "predictions": predictions,
    "means": means,
    "nodata": nodata,
}


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--part", choices=[*PARTS, "ablation"], default="accuracy")
        parser.add_argument("--model", choices=MODELS, action="append", help="default: all")
        parser.add_argument("--limit", type=int, help="test images (default: all)")
        parser.add_argument("--format", choices=["float", "qdq"], default="float", help="format of the ablation")

    given = arguments(__doc__, options)
    names, started = given.model or MODELS, time.perf_counter()
    rows: Rows = []
    for name in names:
        if given.part == "ablation":
            rows += ablation(name, given.limit, given.format)
        else:
            rows += PARTS[given.part](Case.of(name, given.limit))
    rows = side_by_side(rows) if given.part == "ablation" else rows
    report(f"ACIQ: {given.part} ({time.perf_counter() - started:.0f} s)", rows, json_path=given.json)


if __name__ == "__main__":
    main()
