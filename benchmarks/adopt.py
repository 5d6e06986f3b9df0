"""Files of other tools, before and after `qgraph adopt`: accuracy, agreement, size and latency.

`python -m benchmarks.adopt [FILE ...] [--limit N] [--json OUT.json]`: onnxruntime quantizes ResNet-20 in five forms, on
256 training images; FILEs are further quantized forms of it, made by other tools (`benchmarks/adopt_files.py`). Every
file is adopted with the same 256 images and without knowing the float model, then both run on N test images (default
10,000) at batch 32 on one thread, in turn. `layers kept` are those that keep every code of their weight, `ms` is the
median CPU time of a batch. A file that onnxruntime does not run has no figures before; classes and decibels then
compare with the float network inside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
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


def compared(
    name: str, path: Path, folder: Path, calibration: qgraph.Dataset, test: qgraph.Dataset, floats: Session
) -> dict[str, Any]:
    """One row: the file as it is, and adopted."""
    adopted = qgraph.adopt(path, calibration, measure=False)
    target = folder / "adopted.onnx"
    nbytes = adopted.save(str(target))
    after = Session(load(target).ir_model, threads=1)
    feeds = next(test.batches(BATCH)).feeds
    jobs = {"floats": lambda: floats.run_list(feeds), "after": lambda: after.run_list(feeds)}
    before, why = runs(path, feeds)
    if before is not None:
        jobs["before"] = lambda: before.run_list(feeds)
    ours = answers(after, test)
    theirs = answers(before or Session(adopted.net.ir_model, threads=1), test)
    times = in_turn(jobs, runs=RUNS, clock=time.thread_time)
    return {
        "file": name,
        "layers kept": f"{adopted.kept} of {len(adopted.layers)}",
        "KB": f"{path.stat().st_size / 1024:.0f} -> {nbytes / 1024:.0f}",
        "top-1 before": None if before is None else top1(theirs, test),
        "after": top1(ours, test),
        "same class %": 100 * float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        "dB": 10 * np.log10(float(np.square(theirs).sum()) / max(float(np.square(theirs - ours).sum()), 1e-30)),
        "ms before": 1e3 * times["before"] if before is not None else None,
        "ms after": 1e3 * times["after"],
        "ms floats": 1e3 * times["floats"],
        "before": why,
    }


def runs(path: Path, feeds: Any) -> tuple[Session | None, str]:
    """A session on a file that onnxruntime runs; else None, and what it says."""
    try:
        session = Session(path, threads=1)
        session.run_list(feeds)
    except QGraphError as error:
        return None, "does not load" if "cannot load" in str(error) else "loads, and fails in the first run"
    return session, "runs"


def answers(session: Session, test: qgraph.Dataset) -> Any:
    return np.concatenate([session.run_list(batch.feeds)[0] for batch in test.batches(BATCH)])


def top1(answer: Any, test: qgraph.Dataset) -> float:
    return 100 * float((answer.argmax(axis=1) == test.labels[: len(answer)]).mean())


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
        floats = Session(source, threads=1)
        print(f"float: top-1 {top1(answers(floats, test), test):.2f} %")
        rows = [compared(title, path, folder, calibration, test, floats) for title, path in files.items()]
    report("ResNet-20, files of other tools before and after qgraph adopt", rows, json_path=given.json)


if __name__ == "__main__":
    main()
