"""Few bits without training: what each step after clipping gains, and what it costs.

`python -m benchmarks.bits4 [--model NAME ...] [--images N] [--real FOLDER]`: CIFAR networks are calibrated on 256
training images without labels and judged on the first `--images` test images. With `--real`, FOLDER/mobilenetv2.onnx is
calibrated on FOLDER/imagenet.calib.npz and judged on FOLDER/imagenet.eval.npz. First and last layers have 8 bits.
`drop` is in points of top-1 against the float model on the same images, `dB` the SQNR of the logits, `CPU s` the
processor time of the whole quantization.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import qgraph
from benchmarks.common import CIFAR, arguments, images, report, shared
from qgraph.assess.evaluate import evaluate

NETWORKS = ("resnet20", "resnet32", "relu6_dw", "silu_se")
SETTINGS = ((4, 8), (8, 4), (4, 4))
STEPS: Mapping[str, Mapping[str, Any]] = {
    "clip": {"rounding": "nearest"},
    "second order": {"rounding": "second-order"},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, unlabelled samples to calibrate on, and labelled ones to judge by."""

    name: str
    model: Path
    calibration: Any
    test: dict[str, Any]

    @classmethod
    def cifar(cls, name: str, count: int) -> Case:
        test = dict(zip(("images", "labels"), images("cifar10_test", count), strict=True))
        model = shared("models", f"cifar10_{name}.onnx")
        return cls(name=name, model=model, calibration=images("cifar10_train20k", 256)[0], test=test)

    @classmethod
    def mobilenet(cls, folder: Path, count: int) -> Case:
        with np.load(folder / "imagenet.eval.npz") as archive:
            parts = [archive[name][:count] for name in archive.files]
        test = {"images" if part.ndim == 4 else "labels": part for part in parts}
        return cls(
            name="mobilenetv2", model=folder / "mobilenetv2.onnx", calibration=folder / "imagenet.calib.npz", test=test
        )

    def rows(self) -> list[dict[str, Any]]:
        best = evaluate(self.model, self.test, preprocessing=CIFAR).top1 or 0.0
        return [self._row(best, *setting, step) for setting in SETTINGS for step in STEPS]

    def _row(self, best: float, weights: int, activations: int, step: str) -> dict[str, Any]:
        started = time.process_time()
        options = {"weights": weights, "activations": activations, **STEPS[step]}
        result = qgraph.quantize(self.model, self.calibration, preprocessing=CIFAR, measure=False, **options)
        seconds = time.process_time() - started
        found = evaluate(result.model, self.test, preprocessing=CIFAR, against=self.model)
        return {
            "network": self.name,
            "setting": f"W{weights}A{activations}",
            "step": step,
            "float": best,
            "drop": best - (found.top1 or 0.0),
            "dB": found.sqnr_db,
            "bytes": result.nbytes,
            "CPU s": seconds,
        }


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", choices=NETWORKS, action="append", help="default: all four")
        parser.add_argument("--images", type=int, default=10_000, help="test images, at most (default: 10,000)")
        parser.add_argument("--real", type=Path, metavar="FOLDER", help="MobileNetV2 and its photographs instead")

    given = arguments(__doc__, options)
    if given.real:
        cases = [Case.mobilenet(given.real, given.images)]
    else:
        cases = [Case.cifar(name, given.images) for name in given.model or NETWORKS]
    rows = [row for case in cases for row in case.rows()]
    report("Few bits without training", rows, json_path=given.json)


if __name__ == "__main__":
    main()
