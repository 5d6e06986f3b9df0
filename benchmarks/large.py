"""The memory to quantize the weights of a model with 2.5 GB of external data, beyond the mapped file.

`python -m benchmarks.large [--layers 10] [--width 8192]`: a chain of matrix products is made, quantized weight-only in
processes of their own, and removed again. Memory is the private memory of the process (RssAnon of Linux) beyond that
after a small model, when everything is imported and compiled; pages of the mapped file, which can be dropped at any
time, do not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.common import arguments, report

SETTINGS = (("minmax", 8), ("minmax", 4), ("aciq", 4))


def main() -> None:
    options = arguments(
        __doc__,
        lambda p: p.add_argument("--layers", type=int, default=10, help="matrix products"),
        lambda p: p.add_argument("--width", type=int, default=8192, help="features of each layer"),
        lambda p: p.add_argument("--folder", help="a folder with room for twice the weights"),
    )
    layer = 4 * options.width**2
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_chain(folder / "model.onnx", layers=options.layers, width=options.width)
        rows = [_row(folder, layer, method=method, bits=bits) for method, bits in SETTINGS]
    weights = f"{options.layers * layer / 2**20:,.0f} MB in layers of {layer / 2**20:,.0f} MB"
    report(f"Weight-only quantization of external data, {weights}", rows, json_path=options.json)


def _row(folder: Path, layer: int, *, method: str, bits: int) -> dict[str, Any]:
    code = f"from benchmarks.large import measure; measure({str(folder)!r}, method={method!r}, bits={bits})"
    found = json.loads(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)
    return {
        "setting": f"{method} W{bits}",
        "seconds": found["seconds"],
        "quantized, MB": found["bytes"] / 2**20,
        "memory, MB": found["peak"] / 2**20,
        "memory / largest layer": found["peak"] / layer,
    }


def write_chain(path: Path, *, layers: int, width: int) -> None:
    """y = x W1 W2 ... with weights in NAME.data beside the model, written one at a time."""
    rng, nbytes = np.random.default_rng(0), 4 * width**2
    names = ["x", *(f"t{i}" for i in range(1, layers)), "y"]
    weights = []
    with Path(f"{path}.data").open("wb") as file:
        for index in range(layers):
            rng.standard_normal((width, width), np.float32).tofile(file)
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", f"{path.name}.data"), ("offset", index * nbytes), ("length", nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"layer{i}") for i in range(layers)]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def measure(folder: str, *, method: str, bits: int) -> None:
    """Quantize `folder`/model.onnx and print time and memory as JSON."""
    with tempfile.TemporaryDirectory() as small:
        write_chain(Path(small) / "model.onnx", layers=2, width=64)
        _quantize(Path(small), method, bits)
    own = [_own_memory()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            own.append(_own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    nbytes = _quantize(Path(folder), method, bits)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    onnx.checker.check_model(str(Path(folder) / "out.onnx"))
    print(json.dumps({"bytes": nbytes, "seconds": seconds, "peak": max(own) - own[0]}))


def _quantize(folder: Path, method: str, bits: int) -> int:
    import qgraph

    result = qgraph.quantize(folder / "model.onnx", method=method, weights=bits, activations=None)
    return result.save(folder / "out.onnx")


def _own_memory() -> int:
    """The private memory of this process in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
