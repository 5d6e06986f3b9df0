"""What distilled data is worth (ZeroQ, Table IV): activation ranges from noise, from distilled and from training
images.

Ranges are extreme values and grids per tensor, as in the paper; then the same sources through the product's own recipe.
A further row takes the samples from the same network with BatchNormalization folded away before export.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

import qgraph
from benchmarks.common import CIFAR, arguments, images, report, shared
from qgraph.data import open_data
from qgraph.evaluation import evaluate
from qgraph.model import Model, load, normalise
from qgraph.zeroq import distill
from qgraph.zeroq.spectrum import natural_noise

NETWORKS = ("cifar10_resnet20", "cifar10_resnet32", "cifar10_relu6_dw")
SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8 per tensor, extremes": {"method": "minmax", "weights": 8, "activations": 8, "per_channel": False},
    "W4A6, extremes": {"method": "aciq", "clip": "max", "weights": 4, "activations": 6},
    "W4A8": {"method": "aciq", "weights": 4, "activations": 8},
    "W4A4": {"method": "aciq", "weights": 4, "activations": 4},
}


def sources(model: Any, seed: int) -> dict[str, Any]:
    """Calibration inputs by where they come from."""
    training = images("cifar10_train20k", 1024)[0]
    generator = np.random.default_rng(seed)
    return {
        "Gaussian noise, 32": generator.standard_normal((32, 3, 32, 32)).astype(np.float32),
        "natural noise, 32": natural_noise({"input": (32, 3, 32, 32)}, seed=seed)["input"],
        "distilled, 32": distill(model, count=32, seed=seed).inputs["input"],
        "training data, 1024": next(iter(open_data(training, load(model), preprocessing=CIFAR).batches(1024))).feeds[
            "input"
        ],
    }


def folded(path: Any) -> ir.Model:
    """The network as exporters write it by default: BatchNormalization folded into the convolutions."""
    return normalise(load(path)).ir_model


def main() -> None:
    given = arguments(__doc__, lambda p: p.add_argument("--seed", type=int, default=0))
    test = dict(zip(("images", "labels"), images("cifar10_test"), strict=True))
    rows = []
    for name in NETWORKS:
        path = shared("models", f"{name}.onnx")
        inputs = sources(path, given.seed)
        inputs["BN folded: distilled, 32"] = distill(folded(path), count=32, seed=given.seed).inputs["input"]
        for source, data in inputs.items():
            row: dict[str, Any] = {"network": name, "ranges from": source}
            for setting, options in SETTINGS.items():
                result = qgraph.quantize(path, data, **options)
                model = Model(ir_model=result.model, source=name, nbytes=result.nbytes)
                row[setting] = evaluate(model, test, preprocessing=CIFAR).top1
            rows.append(row)
    report("Top-1 on 10,000 test images by source of the activation ranges", rows, json_path=given.json)


if __name__ == "__main__":
    main()
