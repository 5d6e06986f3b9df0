"""Files of other tools, before and after `qgraph adopt`: accuracy, agreement, size and latency.

`python -m benchmarks.adopt [FILE ...] [--limit N] [--json OUT.json]`: onnxruntime quantizes ResNet-20 in five forms, on
256 training images; FILEs are further quantized forms of it, made by other tools. Every file is adopted with the same
256 images and without knowing the float model, then both run on N test images (default 10,000) at batch 32 on one
thread, in turn. `kept` counts the layers that keep every code of their weight; `ms` is the median time of a batch.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qgraph
from benchmarks.common import CIFAR, arguments, images, in_turn, report, shared
from qgraph.errors import QGraphError
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session

U8, S8 = QuantType.QUInt8, QuantType.QInt8
FORMS: dict[str, dict[str, Any]] = {
    "onnxruntime S8S8 per channel": {"per_channel": True},
    "onnxruntime U8S8 per channel": {"per_channel": True, "activation_type": U8, "weight_type": S8},
    "onnxruntime U8U8 per tensor": {"activation_type": U8, "weight_type": U8},
    "onnxruntime S8S8 per tensor": {"activation_type": S8, "weight_type": S8},
    "onnxruntime QOperator": {
        "quant_format": QuantFormat.QOperator,
        "per_channel": True,
        "activation_type": U8,
        "weight_type": S8,
    },
}
CALIBRATION, BATCH, RUNS = 256, 32, 40


class Reader(CalibrationDataReader):
    """Calibration samples in batches, as onnxruntime asks for them."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def get_next(self) -> Any:
        return next(self.batches, None)


def made(source: Path, folder: Path, calibration: qgraph.Dataset) -> dict[str, Path]:
    """onnxruntime's own files."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    found = {}
    for name, options in FORMS.items():
        found[name] = folder / f"{name.replace(' ', '_')}.onnx"
        reader = Reader(batch.feeds for batch in calibration.batches(BATCH))
        quantize_static(str(prepared), str(found[name]), reader, **options)
    return found


def compared(name: str, path: Path, folder: Path, calibration: qgraph.Dataset, test: qgraph.Dataset) -> dict[str, Any]:
    """One row: the file as it is, and adopted."""
    try:
        adopted = qgraph.adopt(path, calibration, measure=False)
    except QGraphError as error:
        return {"file": name, "kept": str(error)}
    target = folder / "adopted.onnx"
    nbytes = adopted.save(str(target))
    row = {
        "file": name,
        "kept": f"{adopted.kept} of {len(adopted.layers)}",
        "bytes": f"{path.stat().st_size} -> {nbytes}",
    }
    try:
        sessions = [Session(load(p).ir_model, threads=1) for p in (path, target)]
    except QGraphError as error:
        return row | {"before": str(error)}
    answers = [np.concatenate([s.run_list(b.feeds)[0] for b in test.batches(BATCH)]) for s in sessions]
    before, after = (100 * float((a.argmax(axis=1) == test.labels[: len(a)]).mean()) for a in answers)
    noise = float(np.square(answers[0] - answers[1]).sum())
    feeds = next(test.batches(BATCH)).feeds
    times = in_turn({str(i): lambda s=s: s.run_list(feeds) for i, s in enumerate(sessions)}, runs=RUNS)
    return row | {
        "top-1 before": before,
        "after": after,
        "same class %": 100 * float((answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).mean()),
        "dB": 10 * np.log10(float(np.square(answers[0]).sum()) / max(noise, 1e-30)),
        "ms before": 1e3 * times["0"],
        "ms after": 1e3 * times["1"],
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="further quantized forms of ResNet-20")
        parser.add_argument("--limit", type=int, default=10_000, metavar="N", help="test images")

    given = arguments(__doc__, add)
    warnings.simplefilter("ignore")
    source = shared("models", "cifar10_resnet20.onnx")
    net = load(source)
    calibration = qgraph.open_data(images("cifar10_train20k", CALIBRATION)[0], net, preprocessing=CIFAR)
    pictures, labels = images("cifar10_test", given.limit)
    test = qgraph.open_data({"images": pictures, "labels": labels}, net, preprocessing=CIFAR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {**made(source, folder, calibration), **{path.stem: path for path in given.files}}
        rows = [compared(title, path, folder, calibration, test) for title, path in files.items()]
    report("ResNet-20, files of other tools before and after qgraph adopt", rows, json_path=given.json)


if __name__ == "__main__":
    main()
