"""The same file in Python, on older processors, in Node and in WebAssembly: classes, and codes inside.

`python -m benchmarks.portable [--packages DIR] [--limit N] [--models NAME ...] [--json OUT.json]`
quantizes networks with `--portable`, and for comparison for CPUs with VNNI alone, then runs both wherever it can:

* Python: onnxruntime as it is, and on processors that seem to lack VNNI, or AVX too (`older_cpu.c`; it takes a C
  compiler, Linux and a processor that lets CPUID fault), else on one without VNNI in QEMU, with `qemu-x86_64`;
* Node and WebAssembly: `npm install --ignore-scripts onnxruntime-node onnxruntime-web` in DIR.

The classes of test images (10,000; the files for comparison, and all in QEMU, 1,024) and the codes of every
QuantizeLinear on the first 256 are compared with those of Python. `emulated` is a network of products in pairs that
saturate 16 bits, in Numba (`benchmarks.saturating`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import qgraph
from benchmarks.common import CIFAR, arguments, images, report, shared
from benchmarks.saturating import codes_by_emulation
from qgraph.assess.portable import prove_portable
from qgraph.onnxfile.load import load

HERE = Path(__file__).parent
CALIBRATION, BATCH, EMULATED = 256, 32, 8
QEMU = "Python, AVX2 without VNNI (QEMU)"
KINDS = ("portable", "vnni")
NETWORKS = ("cifar10_resnet20", "cifar10_resnet32", "cifar10_relu6_dw")


def runtimes(packages: Path | None, folder: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """The name of each runtime that is here, the command that runs a model in it, and its environment."""
    python = [sys.executable, "-m", "benchmarks.portable_run"]
    yield "Python", python, {}
    shim = older_cpu(folder)
    for kind, name in (("avx2", "Python, AVX2 without VNNI"), ("sse", "Python, SSE")):
        if shim is not None:
            yield name, python, {"LD_PRELOAD": str(shim), "OLDER_CPU": kind}
    if shim is None and (qemu := shutil.which("qemu-x86_64")) is not None:
        yield QEMU, [qemu, "-cpu", "Haswell", *python], {}
    for package in ("onnxruntime-node", "onnxruntime-web"):
        if packages is not None and shutil.which("node") and (packages / "node_modules" / package).is_dir():
            yield package, ["node", str(HERE / "portable_run.mjs"), str(packages), package], {}


def older_cpu(folder: Path) -> Path | None:
    """The library that hides instruction sets; None where it cannot be made or used."""
    compiler, made = shutil.which("cc"), folder / "older_cpu.so"
    if compiler is None or sys.platform != "linux":
        return None
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, HERE / "older_cpu.c"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(made), "OLDER_CPU": "avx2"}
    works = subprocess.run([sys.executable, "-c", "pass"], env=environment, capture_output=True).returncode == 0
    return made if works else None


def run(
    command: list[str], environment: dict[str, str], model: Path, data: Path, shape: tuple[int, ...] = (3, 32, 32)
) -> dict[str, Any]:
    """What a runtime computes for a model: digests of its outputs, and the classes of the first."""
    whole = [*command, str(model), str(data), ",".join(map(str, shape)), str(BATCH)]
    done = subprocess.run(whole, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(whole)} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def with_codes(path: Path) -> Path:
    """The file with the result of every QuantizeLinear as a further output."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            value = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None)
            model.graph.output.append(value)
    target = path.with_suffix(".codes.onnx")
    onnx.save(model, target)
    return target


def compared(name: str, path: Path, folder: Path, options: argparse.Namespace, labels: Any) -> list[dict[str, Any]]:
    """One row for each runtime, compared with the first."""
    rows, inner, first = [], with_codes(path), None
    proof = prove_portable(load(path))
    for runtime, command, environment in runtimes(options.packages, folder):
        data = "few.f32" if runtime == QEMU or name.endswith(KINDS[1]) else "all.f32"
        all_, codes = (
            run(command, environment, model, folder / data) for model, data in ((path, data), (inner, "inner.f32"))
        )
        first = first or (all_, codes)
        same = [codes["outputs"][output] == digest for output, digest in first[1]["outputs"].items()]
        classes = np.array(all_["classes"])
        expected = np.array(first[0]["classes"][: len(classes)])
        rows.append(
            {
                "file": name,
                "proven": "yes" if proof.proven else "no",
                "runtime": f"{runtime} {all_['version']}",
                "images": len(classes),
                "top-1": 100 * float((classes == labels[: len(classes)]).mean()),
                "other classes": int((classes != expected).sum()),
                "tensors of equal codes": f"{sum(same)} of {len(same)}",
                "ms a batch": all_["milliseconds"] * BATCH / len(classes),
            }
        )
    equal, tensors = codes_by_emulation(path, np.fromfile(folder / "inner.f32", np.float32), EMULATED)
    emulated = dict.fromkeys(rows[0]) | {"file": name, "proven": rows[0]["proven"]}
    emulated |= {"runtime": "emulated: saturating pairs", "tensors of equal codes": f"{equal} of {tensors}"}
    return [*rows, emulated]


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--packages", type=Path, metavar="DIR", help="folder whose node_modules has the packages")
        parser.add_argument("--limit", type=int, default=10_000, metavar="N", help="test images")
        parser.add_argument("--few", type=int, default=1024, metavar="N", help="images where many take too long")
        parser.add_argument("--inner", type=int, default=256, metavar="N", help="those whose codes are compared")
        parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="files that are made")
        parser.add_argument("--models", nargs="*", default=NETWORKS, metavar="NAME", help="networks")

    given = arguments(__doc__, add)
    calibration, _ = images("cifar10_train20k", CALIBRATION)
    pictures, labels = images("cifar10_test", given.limit)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for network in given.models:
            source = shared("models", f"{network}.onnx")
            test = qgraph.open_data(pictures, load(source), preprocessing=CIFAR)
            x = np.concatenate([next(iter(batch.feeds.values())) for batch in test.batches(500)])
            x.tofile(folder / "all.f32")
            x[: given.few].tofile(folder / "few.f32")
            x[: given.inner].tofile(folder / "inner.f32")
            for kind in given.kinds:
                asked: dict[str, Any] = {"portable": True} if kind == "portable" else {"target_cpu": "vnni"}
                result = qgraph.quantize(source, calibration, preprocessing=CIFAR, measure=False, **asked)
                path = folder / f"{network}.onnx"
                result.save(path)
                rows += compared(f"{network.removeprefix('cifar10_')}, {kind}", path, folder, given, labels)
    report("The same file in several runtimes", rows, json_path=given.json)


if __name__ == "__main__":
    main()
