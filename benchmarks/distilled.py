"""Activation ranges from noise, distilled data and training images (ZeroQ, Table IV).

    python -m benchmarks.distilled [--networks NAME ...] [--seeds N] [--json FILE]
    python -m benchmarks.distilled --time [--json FILE]

Ranges span the extreme values and grids are per tensor, as in the paper; then the same sources are used with qgraph's
own recipe. Figures are means over seeds of the noise and of the distillation, and `from..to` is the range over seeds at
W8A8: smaller differences are not significant. A further row distils from the same network with BatchNormalization
folded away before export. `--time` measures how long 64 samples take instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qgraph
from benchmarks.common import CIFAR, arguments, images, report, shared, timed
from qgraph.assess.evaluate import evaluate
from qgraph.methods.zeroq.distill import distill
from qgraph.methods.zeroq.spectrum import natural_noise
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.samples.dataset import open_data

NETWORKS = ("cifar10_resnet20", "cifar10_resnet32", "cifar10_relu6_dw")
SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8 per tensor, extremes": {"method": "minmax", "weights": 8, "activations": 8, "per_channel": False},
    "W4A6, extremes": {"method": "aciq", "clip": "max", "weights": 4, "activations": 6},
    "W4A8": {"method": "aciq", "weights": 4, "activations": 8},
    "W4A4": {"method": "aciq", "weights": 4, "activations": 4},
}
SHAPE = (32, 3, 32, 32)
Samples = NDArray[np.float32]


def sources(path: Any) -> dict[str, Callable[[int], Samples]]:
    """Calibration inputs by source, as functions of a seed."""
    return {
        "Gaussian noise, 32": lambda seed: np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32),
        "natural noise, 32": lambda seed: natural_noise({"input": SHAPE}, seed=seed)["input"],
        "distilled, 32": partial(distilled, path),
        "training data, 1024": partial(training, path),
        "BN folded: distilled, 32": partial(distilled, folded(path)),
    }


def distilled(model: Any, seed: int) -> Samples:
    return np.asarray(distill(model, count=SHAPE[0], seed=seed).inputs["input"])


def training(path: Any, seed: int) -> Samples:
    """1,024 training images, different for every seed."""
    pictures = images("cifar10_train20k", 1024 * (seed + 1))[0][1024 * seed :]
    (batch,) = open_data(pictures, load(path), preprocessing=CIFAR).batches(1024)
    return np.asarray(batch.feeds["input"])


def folded(path: Any) -> ir.Model:
    """The network as exporters write it by default, with BatchNormalization folded into convolutions."""
    return normalise(load(path)).ir_model


def accuracies(path: Any, inputs: Samples, test: Mapping[str, Any]) -> list[float]:
    """The top-1 accuracy of every setting."""
    found = []
    for options in SETTINGS.values():
        result = qgraph.quantize(path, inputs, **options)
        model = Model(ir_model=result.model, source=str(path), nbytes=result.nbytes)
        found.append(float(evaluate(model, test, preprocessing=CIFAR).top1 or 0.0))
    return found


def compare(networks: list[str], seeds: int) -> list[dict[str, Any]]:
    test = dict(zip(("images", "labels"), images("cifar10_test"), strict=True))
    rows = []
    for name in networks:
        path = shared("models", f"{name}.onnx")
        for source, draw in sources(path).items():
            print(f"{name}: {source}", file=sys.stderr)
            found = np.array([accuracies(path, draw(seed), test) for seed in range(seeds)])
            row: dict[str, Any] = {"network": name.removeprefix("cifar10_"), "ranges from": source}
            row |= {setting: float(mean) for setting, mean in zip(SETTINGS, found.mean(0), strict=True)}
            rows.append(row | {"W8A8 from..to": f"{found[:, 0].min():.2f}..{found[:, 0].max():.2f}"})
    return rows


def durations(networks: list[str], threads: int | None) -> list[dict[str, Any]]:
    """The seconds for 64 samples by default."""
    rows = []
    for name in networks:
        path = shared("models", f"{name}.onnx")
        jobs = {"BN kept": path, "BN folded": folded(path)}
        taken = {label: timed(partial(distill, model, count=64, threads=threads)) for label, model in jobs.items()}
        rows.append({"network": name.removeprefix("cifar10_")} | {f"{k}, s": v for k, v in taken.items()})
    return rows


def main() -> None:
    given = arguments(
        __doc__,
        lambda p: p.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS),
        lambda p: p.add_argument("--seeds", type=int, default=3),
        lambda p: p.add_argument("--time", action="store_true", help="measure the time of distillation instead"),
    )
    if given.time:
        title, rows = "Seconds to distil 64 samples", durations(given.networks, given.threads or None)
    else:
        title = f"Top-1 on 10,000 test images by source of the activation ranges, mean of {given.seeds} seeds"
        rows = compare(given.networks, given.seeds)
    report(title, rows, json_path=given.json)


if __name__ == "__main__":
    main()
