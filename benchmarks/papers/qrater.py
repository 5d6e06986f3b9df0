"""Q-Rater: Tables 1 to 3 for ResNet-32, the size of the calibration set (Figure 21), and both readings of Eq. 6."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.common import CIFAR, images
from benchmarks.papers.cells import Cells, Figures, kept, over_seeds
from benchmarks.papers.networks import network
from benchmarks.papers.table import Table
from benchmarks.qrater import AS_WRITTEN
from qgraph.graph.sites import GraphView
from qgraph.lowering.simulate import simulate
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.protocol import paper_plan
from qgraph.methods.qrater.search import search
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.running.executor import open_executor
from qgraph.samples.dataset import open_data

LIMIT = 1_000  # test images
SEEDS = (0, 1, 2)
SIZES = (16, 32, 64, 128, 256)
OBJECTIVES = ("task", "loss", "mse")
_NOTE = (
    "The very network of the paper (92.63 in float), 10,000 test images, its grids and Algorithm 1. Cells choose on "
    "256 training images by the distance of the logits, with races; the paper on 50,000 by accuracy. One seed."
)
_TABLES = (
    ("Table 1", "each operation", ("mse", "aciq", "kl", "round", "clip", "bias", "round+clip", "all")),
    ("Table 2", "grid search and Bayesian optimisation", ("mse", "all", "bo")),
    ("Table 3", "first-order rounding", ("1st: round", "1st: round+clip", "1st: all", "round", "round+clip", "all")),
)


def tables(cells: Cells) -> Iterator[Table]:
    for number, title, names in _TABLES:
        yield Table(number=number, title=title, note=_NOTE, rows=lambda names=names: _kept_cells(names))
    yield Table(
        number="Figure 21",
        title="images to choose on: clips of ResNet-20 at 3/3",
        note=f"The paper: ResNet-18, 20 images of each class are enough. Here: mean of {len(SEEDS)} sets of training "
        f"images, chosen by the distance of the logits, on {LIMIT:,} test images (91.73 in float).",
        rows=lambda: [_of_size(cells, count) for count in SIZES],
    )
    yield Table(
        number="Eq. 6",
        title="both readings of the exponent: second-order rounding of ResNet-20",
        note=f"128 images, by the distance of the logits; {LIMIT:,} test images.",
        rows=lambda: [_reading(cells, reading) for reading in ("distance", "printed")],
    )
    yield Table(
        number="Objective",
        title="what is measured: clips of ResNet-20 at 3/3",
        note=f"The paper: accuracy on training images. Here: 128 images, {len(SEEDS)} sets; {LIMIT:,} test images.",
        rows=lambda: [_by(cells, objective) for objective in OBJECTIVES],
    )


def _kept_cells(names: tuple[str, ...]) -> list[Figures]:
    known = {(row["W/A"], row["cell"]): row for row in kept("qrater")}
    rows = []
    for bits in ("5/5", "4/4", "3/3"):
        for name in names:
            found = known[bits, name]
            here = None if found["top-1"] is None else round(found["top-1"], 2)
            rows.append({"W/A": bits, "operation": name, "paper": found["paper"], "here": here})
    return rows


def _searched(bits: int, count: int, seed: int, config: SearchConfig) -> Figures:
    """A search under the paper's protocol on images of its own, and the accuracy of what it found."""
    net = normalise(load(network("resnet20").path), fold_bn=False)
    pictures, labels = (part[seed * count :] for part in images("cifar10_train20k", (seed + 1) * count))
    data = open_data({"input": pictures, "labels": labels}, net, preprocessing=CIFAR)
    start = paper_plan(GraphView(net), observe(net, data), weights=bits, activations=bits)
    with open_executor() as executor:
        found = search(start, net, data, executor=executor, config=replace(config, seed=seed))
    return network("resnet20").top1(Model(ir_model=simulate(net, found.plan), source="resnet20", nbytes=0), LIMIT)


def _of_size(cells: Cells, count: int) -> Figures:
    config = replace(AS_WRITTEN, ingredients=("clip",), objective="mse")
    found = [
        cells(f"21 clip {count} seed {seed}", lambda seed=seed: _searched(3, count, seed, config)) for seed in SEEDS
    ]
    return {"images": count, "of each class": round(count / 10, 1), "top-1": over_seeds(found)}


def _reading(cells: Cells, reading: Any) -> Figures:
    config = replace(AS_WRITTEN, ingredients=("round",), objective="mse", exponent=reading)
    row: Figures = {"reading": {"distance": "as the text means", "printed": "as printed"}[reading]}
    for bits in (4, 3):
        found = cells(f"Eq6 {reading} {bits}", lambda bits=bits: _searched(bits, 128, 0, config))
        row[f"{bits}/{bits}"] = over_seeds([found])
    return row


def _by(cells: Cells, objective: Any) -> Figures:
    config = replace(AS_WRITTEN, ingredients=("clip",), objective=objective)
    found = [
        cells(f"objective {objective} seed {seed}", lambda seed=seed: _searched(3, 128, seed, config)) for seed in SEEDS
    ]
    return {"objective": objective, "top-1": over_seeds(found)}
