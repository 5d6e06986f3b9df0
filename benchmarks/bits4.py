"""Few bits without labels: what each step after clipping gains, and what it costs.

`python -m benchmarks.bits4 [--model NAME ...] [--setting W4A4 ...] [--images N] [--steps N] [--real FOLDER]`: CIFAR
networks are calibrated on 256 training images without labels and judged on the first `--images` test images. With
`--real`, FOLDER/mobilenetv2.onnx is calibrated on FOLDER/imagenet.calib.npz and judged on FOLDER/imagenet.eval.npz.
First and last layers have 8 bits. In a setting such as W8A5m, each tensor that layers read takes bits of its own, 5 on
average (`--activations mixed`, the first and last too). In W4A4d, samples are distilled, and the first and last layers
have 4 bits like all others, as in the papers. Without a choice of networks, nothing is measured and the table of
benchmarks/results/bits4.json is printed; what is measured is kept there.

Each step stands on those above it: `clip`, `equalise` (`qgraph.equalise` before; not of distilled samples), `second
order` (all positions count alike), `important` (clips and roundings count positions by what they do to the outputs, as
`qgraph quantize` does), `reconstruct` (block by block, `--steps` steps each) and `dropping` (the same with roundings
dropped at random, as `--effort best` does). `fast` is `important` with `--effort fast`, and `adaround` is `reconstruct`
with AdaRound's sigmoid and regulariser. `drop` is in points of top-1 against the float model on the same images, `dB`
the SQNR of the logits, both of the written file; `CPU s` is the processor time of all steps so far.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import qgraph
from benchmarks.common import CIFAR, arguments, images, keep, report, shared
from qgraph.assess.evaluate import evaluate
from qgraph.graph.sites import GraphView
from qgraph.jobs.result import Result
from qgraph.lowering.lower import lower
from qgraph.methods.reconstruct.config import STEPS, ReconstructConfig
from qgraph.methods.reconstruct.walk import reconstruct_blocks
from qgraph.methods.second_order.round import round_weights
from qgraph.onnxfile.write import serialised
from qgraph.samples.dataset import Dataset

RESULTS = Path(__file__).parent / "results" / "bits4.json"
TITLE = "Few bits without labels"
NETWORKS = ("resnet20", "resnet32", "relu6_dw", "silu_se")
SETTINGS = ("W4A8", "W8A4", "W4A4")
MIXED = ("W8A6m", "W8A5m", "W8A4.5m", "W4A5m", "W4A4.5m")
DISTILLED = ("W4A4d", "W3A3d")
STEP_NAMES = ("clip", "equalise", "second order", "fast", "important", "adaround", "reconstruct", "dropping")
LEARNED = {
    "adaround": {"drop": 0.0, "adaround": 1.0},
    "reconstruct": {"drop": 0.0},
    "dropping": {"drop": 0.5},
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

    def rows(self, settings: Sequence[str], names: Sequence[str], steps: int) -> Iterator[dict[str, Any]]:
        best = evaluate(self.model, self.test, preprocessing=CIFAR).top1 or 0.0
        for setting in settings:
            for step, made, seconds in self._steps(setting, names, steps):
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

    def _steps(self, setting: str, names: Sequence[str], steps: int) -> Iterator[tuple[str, ir.Model, float]]:
        """The name of every step, the file after it, and the processor time until then."""

        bits = bits_of(setting)
        given = None if setting in DISTILLED else self.calibration

        def quantized(model: Any, **options: Any) -> Result:
            return qgraph.quantize(model, given, preprocessing=CIFAR, measure=False, guard="off", **bits, **options)

        clock = time.process_time
        if "clip" in names:
            started = clock()
            yield "clip", quantized(self.model, rounding="nearest").model, clock() - started
        started, model = clock(), self.model
        if given is not None:
            narrow = {"weights": bits["weights"], "activations": bits.get("activations", 4)}
            model = qgraph.equalise(self.model, given, preprocessing=CIFAR, **narrow).ir_model
        base = clock() - started
        if given is not None and {"equalise", "second order"} & set(names):
            started = clock()
            clipped = quantized(model, rounding="nearest")
            plain = base + clock() - started
            yield "equalise", clipped.model, plain
            if "second order" in names:
                started = clock()
                alike = round_weights(clipped.plan, GraphView(clipped.net), _samples(clipped))
                yield "second order", lower(clipped.net, alike, format="qdq"), plain + clock() - started
        if "fast" in names:
            started = clock()
            yield "fast", quantized(model, rounding="second-order", effort="fast").model, base + clock() - started
        started = clock()
        rounded = quantized(model, rounding="second-order")
        base += clock() - started
        yield "important", rounded.model, base
        for step, options in LEARNED.items():
            if step in names:
                started = clock()
                config = ReconstructConfig(steps=steps, **options)
                plan = reconstruct_blocks(rounded.plan, GraphView(rounded.net), _samples(rounded), config=config)
                yield step, lower(rounded.net, plan, format="qdq"), base + clock() - started


def _samples(made: Result) -> Dataset:
    """What a result was made from; distilled where nothing was given."""
    assert made.samples is not None
    return made.samples


def bits_of(setting: str) -> dict[str, Any]:
    """The options of a setting: W4A4, W8A4.5m for 4.5 bits on average, W4A4d for all layers on distilled samples."""
    found = re.fullmatch(r"W(\d)A([\d.]+)([md]?)", setting)
    assert found, setting
    average = {"average_activation_bits": float(found[2])} if found[3] == "m" else {"activations": int(found[2])}
    edges = {"edge_bits": "same"} if found[3] == "d" else {}
    return {"weights": int(found[1]), **average, **edges}


def kept(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows measured so far."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def merged(known: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows in the order of networks, settings and steps; those just measured replace others of their case."""

    def case(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["network"], row["setting"], row["step"]

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        network = (*NETWORKS, "mobilenetv2").index(row["network"])
        return network, (*SETTINGS, *MIXED, *DISTILLED).index(row["setting"]), STEP_NAMES.index(row["step"])

    found = {case(row): row for row in (*known, *rows)}
    return sorted(found.values(), key=place)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The drop of every network after each step, in points, for README; of CIFAR's where all is at 4 bits."""
    drops: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["network"] in NETWORKS and row["setting"] not in ("W4A4", "W4A4d"):
            continue
        drops.setdefault((row["network"], row["setting"]), {})[row["step"]] = row["drop"]
    measured = [step for step in STEP_NAMES if any(step in found for found in drops.values())]
    return [
        {"network": network, "bits": setting, **{step: found.get(step) for step in measured}}
        for (network, setting), found in drops.items()
    ]


def case_options(parser: argparse.ArgumentParser) -> None:
    """Which networks are measured, and on how many images."""
    parser.add_argument("--model", choices=NETWORKS, action="append", help="networks of CIFAR to measure")
    parser.add_argument("--images", type=int, default=10_000, help="test images, at most (default: 10,000)")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="measure MobileNetV2 on its photographs")


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    """The cases that `case_options` ask for."""
    cases = [Case.cifar(name, given.images) for name in given.model or ()]
    return [*cases, Case.mobilenet(given.real, given.images)] if given.real else cases


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        case_options(parser)
        parser.add_argument(
            "--setting", choices=(*SETTINGS, *MIXED, *DISTILLED), action="append", help="default: W4A8, W8A4, W4A4"
        )
        parser.add_argument("--step", choices=STEP_NAMES, action="append", help="default: all")
        parser.add_argument("--steps", type=int, default=STEPS["default"], help="of each block (default: %(default)s)")

    given = arguments(__doc__, options)
    path = Path(given.json) if given.json else RESULTS
    rows = kept(path)
    for case in chosen_cases(given):
        for row in case.rows(given.setting or SETTINGS, given.step or STEP_NAMES, given.steps):
            report(TITLE, [row])
            rows = merged(kept(path), [row])
            _write(path, rows)
    report(TITLE, rows)


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Keep all rows, and beside them the summary that README shows."""
    keep(TITLE, rows, path)
    keep(TITLE, summary(rows), path.with_name(f"{path.stem}_summary.json"))


if __name__ == "__main__":
    main()
