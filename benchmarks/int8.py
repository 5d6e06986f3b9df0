"""INT8 and W4A8 against onnxruntime's static quantization, in one run.

Model: cifar10_resnet20 (cifar10_resnet32 for the size of 4-bit files); 256 calibration images, 10,000 test images.
Times are from file to file, and latencies relative to the float model; alternatives take turns in the same run.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qgraph
from benchmarks.common import CIFAR, arguments, images, in_turn, report, shared
from qgraph.assess.evaluate import evaluate
from qgraph.onnxfile.load import load
from qgraph.samples.dataset import Dataset, open_data

RUNS = 7
LATENCY_RUNS = {1: 200, 32: 40}
TYPES = {
    "onnxruntime U8S8": (QuantType.QUInt8, QuantType.QInt8),
    "onnxruntime S8S8": (QuantType.QInt8, QuantType.QInt8),
}


class Reader(CalibrationDataReader):
    """The calibration images in the form that onnxruntime's tool needs."""

    def __init__(self, data: Dataset) -> None:
        self.batches: Iterator[Any] = (batch.feeds for batch in data.batches(32))

    def get_next(self) -> Any:
        return next(self.batches, None)


def theirs(source: Path, target: Path, data: Dataset, types: tuple[QuantType, QuantType]) -> None:
    """Quantize by onnxruntime: its pre-processing step, then QDQ per channel."""
    prepared = target.with_suffix(".pre.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(target),
        Reader(data),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=types[0],
        weight_type=types[1],
    )


def ours(source: Path, target: Path, data: Dataset, **options: Any) -> None:
    qgraph.quantize(source, data, **options).save(target)


def latencies(files: dict[str, Path], feeds: Any, threads: int) -> dict[int, dict[str, float]]:
    """The median seconds per run at each batch size."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    sessions = {n: ort.InferenceSession(str(p), options, providers=["CPUExecutionProvider"]) for n, p in files.items()}
    result = {}
    for batch, runs in LATENCY_RUNS.items():
        x = {"input": np.ascontiguousarray(feeds["input"][:batch])}
        jobs = {name: (lambda s=session, x=x: s.run(None, x)) for name, session in sessions.items()}
        result[batch] = in_turn(jobs, runs=runs, warmup=5)
    return result


def main() -> None:
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(3)
    given = arguments(__doc__)
    calibration, _ = images("cifar10_train20k", 256)
    test = dict(zip(("images", "labels"), images("cifar10_test"), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            *compare_model("cifar10_resnet20", Path(folder), calibration, test, given.threads),
            *compare_model("cifar10_resnet32", Path(folder), calibration, test, given.threads),
        ]
        report("W8A8 and W4A8 against onnxruntime's own quantization", rows, json_path=given.json)
        faces(Path(folder))


def compare_model(name: str, folder: Path, calibration: Any, test: Any, threads: int) -> list[dict[str, Any]]:
    source = shared("models", f"{name}.onnx")
    data = open_data(calibration, load(source), preprocessing=CIFAR)
    jobs = {
        "qgraph W8A8 minmax": lambda p: ours(source, p, data, method="minmax"),
        "qgraph W8A8 aciq": lambda p: ours(source, p, data),
        "qgraph W4A8 aciq": lambda p: ours(source, p, data, weights=4),
        **{tool: (lambda p, t=types: theirs(source, p, data, t)) for tool, types in TYPES.items()},
    }
    files = {tool: folder / f"{name}-{tool.replace(' ', '-')}.onnx" for tool in jobs}
    seconds = in_turn({tool: (lambda t=tool: jobs[t](files[t])) for tool in jobs}, runs=RUNS)
    feeds = next(iter(data.batches(32))).feeds
    times = latencies({"float": source, **files}, feeds, threads)
    models = {"float": source, **files}
    accuracy = {tool: evaluate(path, test, preprocessing=CIFAR).top1 for tool, path in models.items()}
    reference = seconds["onnxruntime U8S8"]
    rows = []
    for tool, path in models.items():
        rows.append(
            {
                "model": name,
                "tool": tool,
                "seconds": seconds.get(tool),
                "/ U8S8": seconds[tool] / reference if tool in seconds else None,
                "top-1": accuracy[tool],
                "bytes": path.stat().st_size,
                "latency 1": times[1][tool] / times[1]["float"],
                "latency 32": times[32][tool] / times[32]["float"],
            }
        )
    return rows


def faces(folder: Path) -> None:
    """The SSD face detector, per channel: does the quantized file load, and does it see what the float model sees?"""
    source, pictures = shared("models", "face_rfb320.onnx"), shared("data", "faces")
    preprocessing = qgraph.Preprocessing(mean=(127 / 255,), std=(128 / 255,))
    data = open_data(pictures, load(source), preprocessing=preprocessing)
    rows = []
    for tool, job in {
        "qgraph W8A8": lambda p: ours(source, p, data),
        "onnxruntime U8S8": lambda p: theirs(source, p, data, TYPES["onnxruntime U8S8"]),
    }.items():
        path = folder / f"faces-{tool.split()[0]}.onnx"
        try:
            job(path)
            result = evaluate(path, pictures, against=source, preprocessing=preprocessing)
            rows.append({"face_rfb320": tool, "loads": "yes", "bytes": path.stat().st_size, "SQNR dB": result.sqnr_db})
        except Exception as error:
            reason = str(error).split("\n")[0][:70]
            rows.append({"face_rfb320": tool, "loads": f"no: {reason}", "bytes": None, "SQNR dB": None})
    report("A face detector of opset 9, per channel", rows)


if __name__ == "__main__":
    main()
