"""A face detector against its float original: average precision, with the float model's boxes as the truth.

face_rfb320 (SSD, 52 convolutions) on the pictures of data/faces. "No data": ranges from distilled samples. "Faces":
ranges from pictures of the same kind, but never the measured ones (one half calibrates while the other is measured,
then the reverse). True boxes are those with a score of at least 0.7 from the float model, after suppression at IoU 0.5.
Of the quantized model, all candidates with a score of at least 0.05 are ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import qgraph
from benchmarks.boxes import Detections, average_precision
from benchmarks.common import arguments, report, shared
from qgraph.graph.sites import GraphView
from qgraph.jobs.distil import distilled_inputs
from qgraph.jobs.result import Result
from qgraph.onnxfile.load import load
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.samples.preprocessing import Preprocessing

MODEL, SAMPLES = "face_rfb320.onnx", 32
PREPROCESSING = Preprocessing(mean=(127 / 255,), std=(128 / 255,))
SIZE = (320, 240)
TRUE_SCORE, LEAST_SCORE, SUPPRESSION = 0.7, 0.05, 0.5
OVERLAPS = tuple(i / 100 for i in range(50, 100, 5))  # as for COCO

Pictures = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table: the options for `quantize`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


SETTINGS = (
    Setting(name="W8A8", options={"weights": 8}),
    Setting(name="W8A8, extremes", options={"weights": 8, "clip": "max"}),
    Setting(name="W6A8", options={"weights": 6}),
    Setting(name="W5A8", options={"weights": 5}),
    Setting(name="W4A8", options={"weights": 4}),
    Setting(name="mixed, 6 bits on average", options={"weights": "mixed", "average_bits": 6.0}),
    Setting(name="mixed, 5 bits on average", options={"weights": "mixed", "average_bits": 5.0}),
    Setting(name="mixed, 4 bits on average", options={"weights": "mixed", "average_bits": 4.0}),
)


def pictures() -> Pictures:
    """All pictures in the detector's format: RGB, 320 x 240."""
    paths = sorted(shared("data", "faces").glob("*.jpg"))
    return np.stack([np.asarray(Image.open(p).convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)) for p in paths])


def detect(session: Session, images: Pictures) -> list[Detections]:
    """The faces in every picture, down to the lowest score."""
    found = []
    for image in images:
        x = ((image.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        outputs = session.run({"input": x})
        scores, boxes = outputs["scores"][0, :, 1], outputs["boxes"][0]
        found.append(Detections.best(boxes, scores, least=LEAST_SCORE, overlap=SUPPRESSION))
    return found


def quantized(path: Path, calibration: Any, setting: Setting) -> Result:
    return qgraph.quantize(path, calibration, method="aciq", preprocessing=PREPROCESSING, **setting.options)


def mean_bits(result: Result) -> float:
    """The average bits per weight, including the first and last layers."""
    view = GraphView(result.net)
    sizes = [view.by_name[quant.name].weight_array().size for quant in result.plan.layers]
    return float(np.average([quant.weight.bits for quant in result.plan.layers], weights=sizes))


def row(path: Path, setting: Setting, source: str, folds: Sequence[tuple[Any, Sequence[int]]], images: Pictures) -> Any:
    """One line of the table; a fold is the calibration data and the pictures to measure."""
    truth = detect(Session(load(path).ir_model, threads=1), images)
    found: dict[int, Detections] = {}
    for calibration, measured in folds:
        result = quantized(path, calibration, setting)
        found |= dict(zip(measured, detect(Session(result.model, threads=1), images[list(measured)]), strict=True))
    expected = [d.above(TRUE_SCORE).boxes for d in truth]
    ordered = [found[i] for i in range(len(images))]
    strict = [average_precision(ordered, expected, overlap=overlap) for overlap in OVERLAPS]
    return {
        "setting": setting.name,
        "ranges from": source,
        "mean weight bits": mean_bits(result),
        "bytes": result.nbytes,
        "faces": sum(len(boxes) for boxes in expected),
        "AP at IoU 0.5": strict[0],
        "AP at IoU 0.5 to 0.95": float(np.mean(strict)),
    }


def main() -> None:
    given = arguments(
        __doc__,
        lambda p: p.add_argument("--seed", type=int, default=0),
        lambda p: p.add_argument("--settings", nargs="+", default=[s.name for s in SETTINGS], metavar="NAME"),
    )
    path, images = shared("models", MODEL), pictures()
    everything = range(len(images))
    even, odd = list(everything[::2]), list(everything[1::2])
    distilled = distilled_inputs(load(path), Job(seed=given.seed), count=SAMPLES)
    rows = []
    for setting in (s for s in SETTINGS if s.name in given.settings):
        rows.append(row(path, setting, "no data", [(distilled, everything)], images))
        rows.append(row(path, setting, "faces", [(images[even], odd), (images[odd], even)], images))
    report("Face detector: agreement with the float model's own boxes", rows, json_path=given.json)


if __name__ == "__main__":
    main()
