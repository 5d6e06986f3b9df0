"""ZeroQ: Tables I to VIII. Nothing is calibrated on images, except where a row says so."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qgraph
import qmath
from benchmarks.common import CIFAR
from benchmarks.papers.cells import Cells, Figures, kept, over_seeds, percent
from benchmarks.papers.networks import network
from benchmarks.papers.table import Table
from benchmarks.zeroq import bits_of
from qgraph.jobs.prepare import gather
from qgraph.lowering.simulate import simulate
from qgraph.methods.zeroq.allocate import frontier, mix
from qgraph.methods.zeroq.distill import distill
from qgraph.methods.zeroq.sensitivity import Sensitivity
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.samples.dataset import open_data

LIMIT = 1_000  # test images
SEEDS = (0, 1, 2)
DRAWS = 20
BITS = (2, 4, 8)
_PAPER_VI = {"W8A8": 93.94, "mixed, 0.20 MB, A6": 93.87, "mixed, 0.13 MB, A8": 93.16}
_TABLE_I: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("float", {}, "73.03"),
    ("W8A8", {"weights": 8}, "72.91"),
    ("mixed, 6 bits on average, A6", {"weights": "mixed", "average_bits": 6.0, "activations": 6}, "-"),
    ("mixed, 4 bits on average, A8", {"weights": "mixed", "average_bits": 4.0}, "68.83"),
)
_CLIPS = (("extremes", "max", "not printed"), ("99.9 %", "percentile", "69.05"), ("least squared error", "mse", "-"))
_PAPER_V = {"frontier": "75.80 75.62 75.73 2.4", "Random": "38.98 0.10 6.86 105.8", "Inverse": "0.11 0.06 0.07 3.0"}
_SOURCES = {"Gaussian": ("75.44", "66.73"), "training": ("75.95", "69.06"), "distilled": ("75.80", "68.83")}


def tables(cells: Cells) -> Iterator[Table]:
    yield Table(
        number="Table VI",
        title="ResNet-20 on CIFAR-10 without any data",
        note="The very network and size budgets of the paper, with other weights (91.73; the paper's 94.03). "
        "Mean of 5 seeds.",
        rows=_table_vi,
    )
    yield Table(
        number="Table Ib",
        title="MobileNetV2 without any data",
        note="torchvision's weights, 300 photographs (a 95 % interval of about 4 points; ± is that of seeds), as "
        "`qgraph quantize` does it without data. The paper: 73.03 in float, on all of ImageNet's validation images.",
        rows=lambda: [_mobilenet(cells, *row) for row in _TABLE_I],
    )
    yield Table(
        number="Table II",
        title="detection",
        note="The paper: RetinaNet on COCO (mAP 36.4 in float). Here: a face detector, and how well its boxes agree "
        "with those of its float original, on the pictures at hand; 17 of its 52 convolutions lack BatchNormalization.",
        rows=lambda: kept("zeroq_detection") or [{"": "not measured"}],
    )
    yield Table(
        number="Table III",
        title="percentile clipping of weights: mixed, 4 bits on average, A4",
        note=f"The paper: ResNet-18 (71.47 in float). Here: ResNet-20 (91.73), {LIMIT:,} test images, seeds of the "
        "distilled data.",
        rows=lambda: [_clipped(cells, *row) for row in _CLIPS],
    )
    yield Table(
        number="Tables IV and VIII",
        title="where sensitivities and ranges come from: mixed, 4 bits on average, A8",
        note=f"Here: {LIMIT:,} test images; Gaussian and distilled: 32 samples, training: 256 images; seeds of the "
        "samples. Bits 2, 4 and 8, ranges from the smallest to the largest value, as in the paper.",
        rows=lambda: [_from(cells, source, *printed) for source, printed in _SOURCES.items()],
    )
    yield Table(
        number="Table V",
        title="20 selections of equal size: 4 bits on average, A8",
        note="The paper: ResNet-50, best, worst, mean, variance. Here: ResNet-20 on 500 test images. frontier: the "
        "last 20 points within the budget; Inverse: the 20 of largest sensitivity; Random: bits drawn for every layer.",
        rows=lambda: [_selected(cells, kind) for kind in ("uniform", "frontier", "Random", "Inverse")],
    )
    yield Table(
        number="Time (section IV-A)",
        title="seconds of the three stages",
        note="The paper: ResNet-50 on 8 V100: 3 s to distil, 12 s of sensitivities, 14 s of frontier. Here: ResNet-20 "
        "on 2 cores, beside the same in PyTorch.",
        rows=lambda: kept("zeroq_time"),
    )


def _table_vi() -> list[Figures]:
    rows = [row for row in kept("zeroq_accuracy") if row["network"] == "cifar10_resnet20"]
    return [
        {
            "setting": row["setting"],
            "MB": round(row["weights MB"], 2),
            "paper": _PAPER_VI[row["setting"]],
            "paper's drop": row["paper's drop"],
            "here": round(row["top-1"], 2),
            "drop": round(row["drop"], 2),
        }
        for row in rows
    ]


def _mobilenet(cells: Cells, name: str, options: dict[str, Any], paper: str) -> Figures:
    case = network("mobilenetv2")

    def measure(seed: int) -> Figures:
        result = qgraph.quantize(case.path, seed=seed, measure=False, rounding="nearest", **options)
        size = sum(layer.weight_bytes for layer in result.layers)
        return case.top1(Model(ir_model=result.model, source=name, nbytes=0)) | {"bytes": size}

    row: Figures = {"setting": name, "paper": paper, "weights MB": None}
    if not options:
        return row | {"here": percent(cells(f"Ib {name}", lambda: case.top1(case.net), possible=case.there))}
    found = [cells(f"Ib {name}, seed {s}", lambda s=s: measure(s), possible=case.there) for s in SEEDS]
    sizes = [one["bytes"] for one in found if one is not None]
    return row | {"weights MB": round(sizes[0] / 2**20, 2) if sizes else None, "here": over_seeds(found)}


@cache
def _samples(name: str, source: str, seed: int) -> NDArray[np.float32]:
    if source == "training":
        case = network(name)
        (batch,) = open_data(case.calibrating(seed=seed), case.net, preprocessing=CIFAR).batches(256)
        return np.asarray(batch.feeds["input"])
    if source == "Gaussian":
        return np.random.default_rng(seed).standard_normal((32, 3, 32, 32)).astype(np.float32)
    return np.asarray(distill(network(name).path, count=32, seed=seed).inputs["input"])


def _mixed(name: str, samples: NDArray[np.float32], **options: Any) -> Figures:
    """The accuracy of mixed weights, 4 bits on average, with all that decides taken from some samples."""
    asked = {"weights": "mixed", "average_bits": 4.0, "bits": BITS, "clip": "max", "method": "zeroq"}
    asked |= {"rounding": "nearest", **options}
    result = qgraph.quantize(network(name).path, samples, measure=False, **asked)
    return network(name).top1(Model(ir_model=result.model, source=name, nbytes=0), LIMIT)


def _seeded(cells: Cells, key: str, measure: Callable[[int], Figures]) -> str:
    return over_seeds([cells(f"{key}, seed {seed}", lambda seed=seed: measure(seed)) for seed in SEEDS])


def _clipped(cells: Cells, title: str, clip: str, paper: str) -> Figures:
    settings = {"aciq.percentile": 99.9}
    name = "resnet20"
    return {
        "weights clipped at": title,
        "paper": paper,
        name: _seeded(
            cells,
            f"III {name} {clip}",
            lambda seed: _mixed(
                name, _samples(name, "distilled", seed), weight_clip=clip, activations=4, settings=settings
            ),
        ),
    }


def _from(cells: Cells, source: str, resnet50: str, mobilenet: str) -> Figures:
    row: Figures = {"source": source, "paper: ResNet-50": resnet50, "paper: MobileNetV2": mobilenet}
    for name in ("resnet20", "relu6_dw"):
        row[name] = _seeded(
            cells,
            f"IV {name} {source}",
            lambda seed, name=name: _mixed(name, _samples(name, source, seed), weight_clip="max"),
        )
    return row


@cache
def _menu() -> tuple[Any, Any, Sensitivity]:
    """The 8-bit plan of ResNet-20, every layer at each of the bits, and their sensitivities."""
    gathered = gather(
        network("resnet20").path, _samples("resnet20", "distilled", 0), method="zeroq", weights="mixed", bits=BITS
    )
    mixer = gathered.mixer()
    menus = mixer.menus()
    return gathered.plan(), menus.layers, mixer.sensitivity(menus)


def _selected(cells: Cells, kind: str) -> Figures:
    paper = _PAPER_V.get(kind, "66.59").split()
    found = cells(f"V resnet20 {kind}", lambda: {"top1": _reached(kind), "images": 500})
    row: Figures = {"selections": kind}
    for index, (name, of) in enumerate(
        (("best", max), ("worst", min), ("mean", statistics.mean), ("variance", statistics.pvariance))
    ):
        row[f"paper: {name}"] = paper[index] if index < len(paper) else "-"
        single = found is not None and len(found["top1"]) == 1
        row[name] = "-" if found is None or (single and index) else round(of(found["top1"]), 3)
    return row


def _reached(kind: str) -> list[float]:
    """The accuracies of the selections of one kind."""
    plan, menu, table = _menu()
    net = normalise(network("resnet20").net)
    budget = 4 / 8 * sum(row.weights for row in table.layers)
    worths = []
    for choices in _choices(kind, table, budget):
        mixed = mix(plan, menu, bits_of(table, choices))
        model = Model(ir_model=simulate(net, mixed), source=kind, nbytes=0)
        worths.append(float(network("resnet20").top1(model, 500)["top1"]))
    return worths


def _choices(kind: str, table: Sensitivity, budget: float) -> list[Any]:
    if kind == "uniform":
        return [[row.bits.index(4) for row in table.layers]]
    if kind == "Random":
        return _random(table, budget)
    if kind == "frontier":
        front = frontier(table)
        last = int(np.searchsorted(front.sizes, budget, side="right"))
        return [front.choices[i] for i in range(max(0, last - DRAWS), last)]
    costs = [max(row.measured) - np.array(row.measured) for row in table.layers]
    sizes = [max(row.nbytes) - np.array(row.nbytes, float) for row in table.layers]
    room = sum(max(row.nbytes) for row in table.layers) - 0.97 * budget
    front = qmath.pareto_frontier(costs, sizes)
    last = int(np.searchsorted(front.sizes, room, side="right"))
    return [front.choices[i] for i in range(max(0, last - DRAWS), last)]


def _random(table: Sensitivity, budget: float) -> list[Any]:
    """Bits for every layer, drawn until they take from 97 % to 100 % of the budget."""
    rng, found = np.random.default_rng(0), []
    while len(found) < DRAWS:
        drawn = rng.integers(len(BITS), size=len(table.layers))
        size = sum(row.nbytes[choice] for row, choice in zip(table.layers, drawn, strict=True))
        if 0.97 * budget <= size <= budget:
            found.append(drawn)
    return found
