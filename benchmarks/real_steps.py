"""The steps of `benchmarks.real`, each run as a process: `python -m benchmarks.real_steps STEP MODEL ...`.

Tools import only what a user's own script would, so that time and memory are those of the tool.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qgraph.samples.preprocessing import Preprocessing

Feeds = dict[str, NDArray[Any]]

PAIRS = 60
LATENCY_SECONDS = 30.0
MOST_DB = 200.0
"""The figure for equal outputs; its negative is for outputs that are not finite."""


def preprocessing_of(settings: dict[str, Any]) -> Preprocessing:
    """The normalisation of a network's images, from its table in real.toml."""
    from qgraph.samples.preprocessing import Preprocessing

    return Preprocessing(**{key: tuple(settings[key]) for key in ("mean", "std") if key in settings})


def prepare(model: str, data: str, target: str, settings: str) -> None:
    """Write the samples of a file, one by one and as the model reads them, to an archive for `samples`."""
    from qgraph.onnxfile.load import load
    from qgraph.samples.dataset import open_data

    opened = open_data(data, load(model), preprocessing=preprocessing_of(json.loads(settings)))
    feeds = [batch.feeds for batch in opened.batches(1)]
    names = list(feeds[0])
    arrays = {f"{i}_{k}": feed[name] for i, feed in enumerate(feeds) for k, name in enumerate(names)}
    np.savez(target, names=np.array(names), **arrays)


def samples(path: str) -> Iterator[Feeds]:
    """The feeds that `prepare` wrote, in order, read when needed."""
    with np.load(path) as archive:
        names = archive["names"].tolist()
        for index in range(sum(key.endswith("_0") for key in archive.files)):
            yield {name: archive[f"{index}_{k}"] for k, name in enumerate(names)}


def static(model: str, target: str, data: str) -> None:
    """onnxruntime's static quantization: QDQ per channel, U8S8, MinMax, after its own pre-processing if that works."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = samples(data)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    model, target, data = (str(Path(path).resolve()) for path in (model, target, data))
    os.chdir(Path(target).parent)  # its preparation leaves files where it runs
    prepared = str(Path(target).with_suffix(".pre.onnx"))
    try:
        quant_pre_process(model, prepared)
    except Exception as error:
        print(f"as it is, because its preparation fails: {error}", file=sys.stderr)
        prepared = model
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )


def dynamic(model: str, target: str) -> None:
    """onnxruntime's dynamic quantization with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, target)


def blocks(model: str, target: str) -> None:
    """onnxruntime's MatMulNBits with its defaults: 4 bits, blocks of 128, in an operator of its own."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(model))
    quantizer.process()
    onnx.save(quantizer.model.model, target)


def simplify(model: str, target: str) -> None:
    """onnxsim, which simplifies graphs and leaves them in floating point."""
    import onnx
    import onnxsim

    simpler, checked = onnxsim.simplify(onnx.load(model))
    if not checked:
        sys.exit("onnxsim's own check finds other outputs")
    onnx.save(simpler, target)


def once(model: str, data: str) -> None:
    """Run a file once, to measure its memory."""
    _session(model).run(None, next(samples(data)))


def judge(original: str, small: str, data: str, scores: str) -> None:
    """Print as JSON how far a file is from the float model, in stock onnxruntime on one thread, sample by sample."""
    sessions = _session(original), _session(small)
    names = [output.name for output in sessions[0].get_outputs()]
    outputs = {name: Output(name in json.loads(scores)) for name in names}
    for feed in samples(data):
        want, have = (session.run(names, feed) for session in sessions)
        for name, a, b in zip(names, want, have, strict=True):
            outputs[name].take(a, b)
    shares = [output.share for output in outputs.values() if output.share is not None]
    found = {
        "outputs": {name: output.db for name, output in outputs.items() if output.db is not None},
        "same class": min(shares, default=None),
        "latency": _latency(sessions, list(samples(data))),
    }
    print(json.dumps(found))


class Output:
    """Tallies of one output: its signal, its noise, and how often its largest score is at the same class.

    Outputs are scores if the settings say so, or if they sum to 1 along the last axis in every sample of the float
    model.
    """

    def __init__(self, scores: bool) -> None:
        self.signal = self.noise = 0.0
        self.same = self.rows = 0
        self.given, self.scores = scores, True
        self.seen = False

    def take(self, want: Any, have: Any) -> None:
        if not isinstance(want, np.ndarray) or want.dtype.kind not in "fiub":
            return
        self.seen = True
        if not isinstance(have, np.ndarray) or want.shape != have.shape or not np.isfinite(have).all():
            self.noise = float("inf")
            return
        a, b = want.astype(np.float64), have.astype(np.float64)
        self.signal += float(np.square(a).sum())
        self.noise += float(np.square(a - b).sum())
        self.scores = self.given or (self.scores and _probabilities(want))
        if self.scores:
            same = a.argmax(-1) == b.argmax(-1)
            self.same, self.rows = self.same + int(same.sum()), self.rows + same.size

    @property
    def db(self) -> float | None:
        """10 log10(signal / noise) over all samples, between `-MOST_DB` and `MOST_DB`; None if it is not an array."""
        if not self.seen:
            return None
        if self.noise == 0:
            return MOST_DB
        if self.signal == 0 or self.noise == float("inf"):
            return -MOST_DB
        return float(np.clip(10 * np.log10(self.signal / self.noise), -MOST_DB, MOST_DB))

    @property
    def share(self) -> float | None:
        """The percentage of rows with the same class; None if the output is not scores."""
        return 100 * self.same / self.rows if self.scores and self.rows else None


def _probabilities(values: NDArray[Any]) -> bool:
    if values.dtype.kind != "f" or values.ndim < 2 or values.shape[-1] < 2 or not values.size:
        return False
    return bool((values >= 0).all() and np.allclose(values.sum(-1, dtype=np.float64), 1, atol=1e-3))


def _latency(sessions: tuple[Any, Any], feeds: list[Feeds]) -> float:
    """The median ratio small / float over pairs of runs, in CPU time of this thread; the order alternates."""
    ratios: list[float] = []
    began = time.monotonic()
    while len(ratios) < PAIRS and (len(ratios) < 10 or time.monotonic() - began < LATENCY_SECONDS):
        seconds = [0.0, 0.0]
        for which in (0, 1) if len(ratios) % 2 else (1, 0):
            start = time.thread_time()
            sessions[which].run(None, feeds[len(ratios) % len(feeds)])
            seconds[which] = time.thread_time() - start
        ratios.append(seconds[1] / max(seconds[0], 1e-9))
    return median(ratios)


def _session(path: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


STEPS = {step.__name__: step for step in (prepare, static, dynamic, blocks, simplify, once, judge)}

if __name__ == "__main__":
    STEPS[sys.argv[1]](*sys.argv[2:])
