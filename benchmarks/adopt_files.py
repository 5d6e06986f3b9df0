"""Quantized forms of a classifier by other tools, for `benchmarks.adopt`: run it where those tools are installed.

`python benchmarks/adopt_files.py MODEL.onnx IMAGES.npz FOLDER [--count 256]` needs neither qgraph nor this checkout:
tools pin versions of each other's packages, so each may live in an environment of its own. Whatever of onnxsim, NNCF,
NVIDIA's ModelOpt and AMD's Quark can be imported writes its files, by its defaults and what its pages recommend, from
the first images of the CIFAR archive; the name of a file has the tool's version.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def onnxsim_files(model: Path, samples: Any, target: Callable[[str], Path]) -> Iterator[str]:
    import onnxsim

    simple, _ = onnxsim.simplify(onnx.load(model))
    name = simple.graph.input[0].name
    for form, job in {"static": onnxsim.quantize_static, "QOperator": onnxsim.quantize_qoperator}.items():
        onnx.save(job(simple, calibration_data=[{name: x[None]} for x in samples]), target(form))
        yield form


def nncf_files(model: Path, samples: Any, target: Callable[[str], Path]) -> Iterator[str]:
    import nncf

    net = onnx.load(model)
    name, mode = net.graph.input[0].name, nncf.CompressWeightsMode
    data = nncf.Dataset([x[None] for x in samples], lambda x: {name: x})
    onnx.save(nncf.quantize(net, data, subset_size=len(samples)), target("static"))
    yield "static"
    four = {"ratio": 1.0, "all_layers": True}
    forms = {
        "weights int8": (mode.INT8_SYM, {}),
        "weights int4": (mode.INT4_SYM, {**four, "group_size": -1}),
        "weights int4 in groups": (mode.INT4_ASYM, {**four, "group_size": 16}),
    }
    for form, (kind, options) in forms.items():
        onnx.save(nncf.compress_weights(onnx.load(model), mode=kind, **options), target(form))
        yield form


def modelopt_files(model: Path, samples: Any, target: Callable[[str], Path]) -> Iterator[str]:
    from modelopt.onnx.quantization import quantize

    data = {onnx.load(model).graph.input[0].name: samples}
    common = {"calibration_data": data, "calibration_eps": ["cpu"], "high_precision_dtype": "fp32"}
    for form, options in {
        "int8": {"quantize_mode": "int8"},
        "weights int4": {"quantize_mode": "int4", "calibration_method": "awq_clip", "block_size": 32},
    }.items():
        quantize(str(model), output_path=str(target(form)), **common, **options)
        yield form


def quark_files(model: Path, samples: Any, target: Callable[[str], Path]) -> Iterator[str]:
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    class Reader:
        def __init__(self) -> None:
            self.index = 0

        def rewind(self) -> None:
            self.index = 0

        def get_next(self) -> Any:
            self.index += 1
            return {name: samples[self.index - 1 : self.index]} if self.index <= len(samples) else None

    name = onnx.load(model).graph.input[0].name
    for form in ("XINT8", "A8W8", "U8S8_AAWS"):
        ModelQuantizer(Config(global_quant_config=get_default_config(form))).quantize_model(
            str(model), str(target(form)), Reader()
        )
        yield form


TOOLS = {
    "onnxsim": onnxsim_files,
    "nncf": nncf_files,
    "nvidia-modelopt": modelopt_files,
    "amd-quark": quark_files,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="an archive with uint8 images, NHWC")
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--count", type=int, default=256, help="images that calibrate")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with np.load(given.images) as archive:
        pictures = archive["images"][: given.count].astype(np.float32) / 255
    samples = np.ascontiguousarray(((pictures - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)
    for tool, make in TOOLS.items():
        try:
            version = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:
            continue

        def target(form: str, stem: str = f"{tool} {version}") -> Path:
            return Path(given.folder / f"{stem} {form}.onnx")

        for form in make(given.model, samples, target):
            print(target(form))


if __name__ == "__main__":
    main()
