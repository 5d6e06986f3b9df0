"""Few bits without labels: what each step after clipping gains, and what it costs.

`python -m benchmarks.bits4 [--model NAME ...] [--setting W4A4 ...] [--images N] [--steps N] [--real FOLDER]`: CIFAR
networks are calibrated on 256 training images without labels and judged on the first `--images` test images. With
`--real`, FOLDER/mobilenetv2.onnx is calibrated on FOLDER/imagenet.calib.npz and judged on FOLDER/imagenet.eval.npz.
First and last layers have 8 bits. Each step stands on those above it: `clip`, `equalise` (`qgraph.equalise` before),
`second order`, `reconstruct` (block by block, `--steps` steps each) and `dropping` (the same with roundings dropped at
random, which is what `--effort` runs). `drop` is in points of top-1 against the float model on the same images, `dB`
the SQNR of the logits, both of the written file; `CPU s` is the processor time of all steps so far.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import qgraph
from benchmarks.common import CIFAR, arguments, images, report, shared
from qgraph.assess.evaluate import evaluate
from qgraph.graph.sites import GraphView
from qgraph.jobs.result import Result
from qgraph.lowering.lower import lower
from qgraph.methods.reconstruct.config import STEPS, ReconstructConfig
from qgraph.methods.reconstruct.walk import reconstruct_blocks
from qgraph.onnxfile.write import serialised
from qgraph.samples.dataset import open_data

NETWORKS = ("resnet20", "resnet32", "relu6_dw", "silu_se")
SETTINGS = ("W4A8", "W8A4", "W4A4")


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

    def rows(self, settings: list[str], steps: int) -> Iterator[dict[str, Any]]:
        best = evaluate(self.model, self.test, preprocessing=CIFAR).top1 or 0.0
        for setting in settings:
            weights, activations = map(int, re.findall(r"\d", setting))
            for step, made, seconds in self._steps(weights, activations, steps):
                found = evaluate(made, self.test, preprocessing=CIFAR, against=self.model)
                yield {
                    "network": self.name,
                    "setting": setting,
                    "step": step,
                    "float": best,
                    "drop": best - (found.top1 or 0.0),
                    "dB": found.sqnr_db,
                    "bytes": len(serialised(made)),
                    "CPU s": seconds,
                }

    def _steps(self, weights: int, activations: int, steps: int) -> Iterator[tuple[str, ir.Model, float]]:
        """The name of every step, the file after it, and the processor time until then."""

        bits: dict[str, Any] = {"weights": weights, "activations": activations}

        def quantized(model: Any, **options: Any) -> Result:
            return qgraph.quantize(
                model, self.calibration, preprocessing=CIFAR, measure=False, guard="off", **bits, **options
            )

        started = time.process_time()
        yield "clip", quantized(self.model).model, time.process_time() - started
        started = time.process_time()
        equal = qgraph.equalise(self.model, self.calibration, preprocessing=CIFAR, **bits)
        base = time.process_time() - started
        yield "equalise", quantized(equal.ir_model).model, base + time.process_time() - started
        started = time.process_time()
        rounded = quantized(equal.ir_model, rounding="second-order")
        base += time.process_time() - started
        yield "second order", rounded.model, base
        samples = open_data(self.calibration, rounded.net, preprocessing=CIFAR)
        for step, drop in (("reconstruct", 0.0), ("dropping", 0.5)):
            started = time.process_time()
            config = ReconstructConfig(steps=steps, drop=drop)
            plan = reconstruct_blocks(rounded.plan, GraphView(rounded.net), samples, config=config)
            made = lower(rounded.net, plan, format="qdq")
            yield step, made, base + time.process_time() - started


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", choices=NETWORKS, action="append", help="default: all four")
        parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: all three")
        parser.add_argument("--images", type=int, default=10_000, help="test images, at most (default: 10,000)")
        parser.add_argument("--steps", type=int, default=STEPS["default"], help="of each block (default: %(default)s)")
        parser.add_argument("--real", type=Path, metavar="FOLDER", help="MobileNetV2 and its photographs instead")

    given = arguments(__doc__, options)
    if given.real:
        cases = [Case.mobilenet(given.real, given.images)]
    else:
        cases = [Case.cifar(name, given.images) for name in given.model or NETWORKS]
    settings = given.setting or list(SETTINGS)
    rows = [row for case in cases for row in case.rows(settings, given.steps)]
    report("Few bits without labels", rows, json_path=given.json)


if __name__ == "__main__":
    main()
