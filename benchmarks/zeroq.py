"""ZeroQ without any image: accuracy of mixed precision, value of its frontier, and time.

    python -m benchmarks.zeroq accuracy     the paper's settings for ResNet-20, and the same average bits for ResNet-32
    python -m benchmarks.zeroq allocation   the frontier against Inverse and Random at the same size (ZeroQ, Table V)
    python -m benchmarks.zeroq time         seconds of the three stages, and of the same three in PyTorch
    python -m benchmarks.zeroq default      seconds of `qgraph quantize MODEL -o OUT` at 32 and 224 pixels, by stage
    python -m benchmarks.zeroq closed       rank correlation of measured and closed-form sensitivities

Test images are only used to measure. `accuracy` is that of `qgraph quantize MODEL` with each setting and no data, a
mean over seeds. The other tables distil once for each network and seed, and use the samples for every row.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

import qgraph
import qmath
from benchmarks.common import CIFAR, arguments, images, report, shared
from qgraph.assess.evaluate import evaluate
from qgraph.graph.sites import GraphView
from qgraph.jobs.distil import DISTILLED
from qgraph.lowering.simulate import simulate
from qgraph.methods.zeroq.allocate import mix
from qgraph.methods.zeroq.distill import distill
from qgraph.methods.zeroq.predict import predict
from qgraph.methods.zeroq.sensitivity import Sensitivity
from qgraph.observe.propagation import known_moments
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise

NETWORKS = ("cifar10_resnet20", "cifar10_resnet32")
SETTINGS: tuple[tuple[str, dict[str, Any], float], ...] = (  # name, options, the paper's drop on ResNet-20
    ("W8A8", {"weights": 8}, 0.09),
    ("mixed, 0.20 MB, A6", {"size_mb": 0.20, "activations": 6}, 0.16),
    ("mixed, 0.13 MB, A8", {"size_mb": 0.13}, 0.87),
)
SIZES = (("models", "cifar10_resnet20", 32), ("real", "mobilenetv2", 224))  # of images, in pixels
DRAWS = 20
PAPER_BITS = (2, 4, 8)


def main() -> None:
    given = arguments(__doc__, _options)
    tables = {"accuracy": accuracy, "allocation": allocation, "time": times, "default": default, "closed": closed}
    title, rows = tables[given.table](given)
    report(title, rows, json_path=given.json)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", choices=["accuracy", "allocation", "time", "default", "closed"])
    parser.add_argument("--seed", type=int, default=0, help="seed of the distilled data")
    parser.add_argument("--seeds", type=int, default=5, help="of `accuracy` (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use at most this many test images")
    parser.add_argument("--network", action="append", help="only these networks (repeatable)")


def accuracy(given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """Top-1 of float and of every setting; for other networks, sizes in MB become the average bits of ResNet-20."""
    test = _test(given)
    reference = _weights(normalise(load(shared("models", f"{NETWORKS[0]}.onnx"))))
    rows = []
    for name in given.network or NETWORKS:
        path = shared("models", f"{name}.onnx")
        floats = evaluate(path, test, preprocessing=CIFAR).top1 or 0.0
        for setting, options, paper in SETTINGS:
            same = {**options, "rounding": "nearest"}  # as in the paper
            if name != NETWORKS[0] and "size_mb" in same:
                same["average_bits"] = same.pop("size_mb") * 2**20 * 8 / reference
            same["threads"] = given.threads or None
            made = [qgraph.quantize(path, seed=seed, **same) for seed in range(given.seeds)]
            reached = [_top1(result.model, test) for result in made]
            rows.append(
                {
                    "network": name,
                    "setting": f"{same['average_bits']:.2f} bits on average" if "average_bits" in same else setting,
                    "weights MB": sum(layer.weight_bytes for layer in made[0].layers) / 2**20,
                    "file bytes": made[0].nbytes,
                    "float": floats,
                    "top-1": statistics.mean(reached),
                    "+-": (max(reached) - min(reached)) / 2,
                    "drop": floats - statistics.mean(reached),
                    "paper's drop": paper if name == NETWORKS[0] else None,
                }
            )
    return f"Top-1 on {len(test['labels']):,} test images, without any data, mean of {given.seeds} seeds", rows


def allocation(given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """20 selections of each kind at 4 bits on average: with the least and largest sum of sensitivities, and random."""
    test = _test(given)
    rows = []
    for name in given.network or NETWORKS[:1]:
        path = shared("models", f"{name}.onnx")
        plan, menu, table = _menu(path, given, PAPER_BITS)
        net = normalise(load(path))
        budget = 4 / 8 * sum(row.weights for row in table.layers)
        for kind, chosen in (
            ("frontier", _near_best(table, budget, given.seed)),
            ("Random", _random(table, budget, given.seed)),
            ("Inverse", _near_best(table, budget, given.seed, inverse=True)),
        ):
            taken = [bits_of(table, selection.choices) for selection in chosen]
            reached = [_top1(simulate(net, mix(plan, menu, bits)), test) for bits in taken]
            rows.append(
                {
                    "network": name,
                    "method": kind,
                    "best": max(reached),
                    "worst": min(reached),
                    "mean": statistics.mean(reached),
                    "variance": statistics.variance(reached),
                    "mean MB": statistics.mean(s.size for s in chosen) / 2**20,
                    "mean sensitivity": statistics.mean(s.cost for s in chosen),
                }
            )
    return (
        f"{DRAWS} selections each of 2, 4 and 8 bits, 4 on average, A8: top-1 on {len(test['labels']):,} images",
        rows,
    )


def closed(given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """Spearman's correlation over all (layer, bits) pairs, with and without BatchNormalization statistics."""
    rows = []
    for name in given.network or NETWORKS:
        path = shared("models", f"{name}.onnx")
        loaded = load(path)
        view = GraphView(normalise(loaded))
        known = known_moments(normalise(loaded, fold_bn=False))
        for bits in (PAPER_BITS, tuple(range(2, 9))):
            table = _menu(path, given, bits)[2]
            width = dataclasses.replace(
                table,
                layers=tuple(dataclasses.replace(r, predicted=tuple(4.0**-k for k in r.bits)) for r in table.layers),
            )
            rows.append(
                {
                    "network": name,
                    "bits": ",".join(map(str, bits)),
                    "pairs": sum(len(row.bits) for row in table.layers),
                    "with BN statistics": predict(table, view, known).agreement(),
                    "weights alone": predict(table, view, {}).agreement(),
                    "4^-bits alone": width.agreement(),
                }
            )
    return "Rank correlation of closed-form with measured sensitivities", rows


def times(given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The seconds from file to file, and of the same three stages in torch if it is installed."""
    rows = []
    for name in given.network or NETWORKS[:1]:
        path = shared("models", f"{name}.onnx")
        result = qgraph.quantize(path, size_mb=0.13, seed=given.seed, threads=given.threads or None)
        ours = result.seconds
        torch = _torch_seconds(path, given)
        for stage in ("distill", "sensitivity", "frontier", "total"):
            rows.append({"network": name, "stage": stage, "qgraph s": ours[stage], "torch s": torch(stage)})
    return "Seconds from file to file at 0.13 MB (torch: n/a where it is not installed)", rows


def default(given: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The seconds of every stage of the default job without data, and the processor time of all of it."""
    rows = []
    for folder, name, pixels in SIZES:
        if given.network and name not in given.network:
            continue
        began = time.process_time()
        result = qgraph.quantize(shared(folder, f"{name}.onnx"), seed=given.seed, threads=given.threads or None)
        used = time.process_time() - began
        rows.append({"network": name, "pixels": pixels, **result.seconds, "CPU": used})
    return "Seconds of quantization without data, with default settings", rows


def _torch_seconds(path: Any, given: argparse.Namespace) -> Callable[[str], Any]:
    if importlib.util.find_spec("torch") is None:
        return lambda stage: "n/a: no torch"
    from benchmarks import torch_zeroq

    seconds = torch_zeroq.stages(path, bits=tuple(range(2, 9)), count=DISTILLED, threads=given.threads, seed=given.seed)
    return lambda stage: seconds[stage]


def _menu(path: Any, given: argparse.Namespace, bits: tuple[int, ...]) -> tuple[Any, dict[str, Any], Sensitivity]:
    """The 8-bit plan, every layer at each of `bits`, and the sensitivities."""
    from qgraph.jobs.prepare import gather

    gathered = gather(path, _distilled(path, given), method="zeroq", weights="mixed", bits=bits)
    mixer = gathered.mixer()
    menus = mixer.menus()
    return gathered.plan(), menus.layers, mixer.sensitivity(menus)


def bits_of(table: Sensitivity, choices: Iterable[int]) -> dict[str, int]:
    """The bits of every layer that a selection takes."""
    return {row.name: row.bits[choice] for row, choice in zip(table.layers, choices, strict=True)}


def _near_best(table: Sensitivity, budget: float, seed: int, *, inverse: bool = False) -> list[qmath.Selection]:
    """Selections with the least sum of sensitivities at the budget, for sensitivities perturbed by about a third.

    With `inverse`, selections with the largest sum, among those that take at least 97% of the budget.
    """
    rng = np.random.default_rng(seed)
    found = []
    for draw in range(DRAWS):
        spread = 0.3 if draw else 0.0
        costs = [np.array(row.measured) * rng.lognormal(0, spread, len(row.bits)) for row in table.layers]
        sizes = [np.array(row.nbytes, float) for row in table.layers]
        room = budget
        if inverse:
            room = sum(float(s.max()) for s in sizes) - 0.97 * budget
            costs, sizes = [c.max() - c for c in costs], [s.max() - s for s in sizes]
        found.append(_selection(table, qmath.knapsack(costs, sizes, room).choices))
    return found


def _random(table: Sensitivity, budget: float, seed: int) -> list[qmath.Selection]:
    """Random bits for every layer, drawn until they take from 97% to 100% of the budget."""
    rng = np.random.default_rng(seed)
    found: list[qmath.Selection] = []
    while len(found) < DRAWS:
        drawn = rng.integers(len(PAPER_BITS), size=len(table.layers))
        selection = _selection(table, drawn)
        if 0.97 * budget <= selection.size <= budget:
            found.append(selection)
    return found


def _selection(table: Sensitivity, choices: Any) -> qmath.Selection:
    pairs = list(zip(table.layers, choices, strict=True))
    size, cost = sum(row.nbytes[c] for row, c in pairs), sum(row.measured[c] for row, c in pairs)
    return qmath.Selection(choices=np.asarray(choices, np.int64), size=float(size), cost=float(cost), gap=float("nan"))


_made: dict[tuple[str, int], Any] = {}


def _distilled(path: Any, given: argparse.Namespace) -> Any:
    key = (str(path), given.seed)
    if key not in _made:
        _made[key] = dict(distill(path, count=DISTILLED, seed=given.seed, threads=given.threads or None).inputs)
    return _made[key]


def _test(given: argparse.Namespace) -> dict[str, Any]:
    return dict(zip(("images", "labels"), images("cifar10_test", given.limit), strict=True))


def _top1(model: Any, test: dict[str, Any]) -> float:
    return evaluate(Model(ir_model=model, source="quantized", nbytes=0), test, preprocessing=CIFAR).top1 or 0.0


def _weights(net: Model) -> int:
    return sum(layer.weight_array().size for layer in GraphView(net).layers)


if __name__ == "__main__":
    main()
