"""Weight gradients of convolutions: qgraph's kernel beside torch (oneDNN) and plain ONNX operators.

    python -m benchmarks.weight_gradients [--torch PYTHON] [--json FILE]

Every engine is a process of its own (`benchmarks.turns`) with the same number of threads; ratios are taken within a
round. The last row sums the convolutions of a CIFAR ResNet-20, as in a training step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.turns import Worker, best, serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A convolution over square images, which occurs `times` in ResNet-20."""

    images: int = 64
    inner: int
    outer: int
    size: int
    kernel: int = 3
    stride: int = 1
    group: int = 1
    times: int = 0

    @property
    def pad(self) -> int:
        return self.kernel // 2

    @property
    def result(self) -> int:
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    def __str__(self) -> str:
        extra = f", stride {self.stride}" * (self.stride > 1) + f", {self.group} groups" * (self.group > 1)
        return f"{self.images} x {self.inner} -> {self.outer}, {self.size} px, {self.kernel} x {self.kernel}{extra}"

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.images, self.inner, self.size, self.size), np.float32)
        return x, rng.standard_normal((self.images, self.outer, self.result, self.result), np.float32)


SHAPES = (
    Shape(inner=3, outer=16, size=32, times=1),
    Shape(inner=16, outer=16, size=32, times=6),
    Shape(inner=16, outer=32, size=32, stride=2, times=1),
    Shape(inner=32, outer=32, size=16, times=5),
    Shape(inner=32, outer=64, size=16, stride=2, times=1),
    Shape(inner=64, outer=64, size=8, times=5),
    Shape(inner=32, outer=96, size=32, kernel=1),
    Shape(inner=96, outer=96, size=16, group=96),
    Shape(inner=64, outer=64, size=32, group=64),
    Shape(images=16, inner=256, outer=256, size=14),
    Shape(images=8, inner=64, outer=64, size=56),
    Shape(images=8, inner=64, outer=256, size=56, kernel=1),
    Shape(images=8, inner=3, outer=64, size=224, kernel=7, stride=2),
    Shape(images=1, inner=32, outer=64, size=240, stride=2),
)


def main() -> None:
    options = _options()
    if options.engine:
        _serve(options.engine, options.threads)
        return
    pythons = {"qgraph": sys.executable, "onnx": sys.executable} | ({"torch": options.torch} if options.torch else {})
    workers = {
        name: Worker(python, "benchmarks.weight_gradients", [f"--engine={name}", f"--threads={options.threads}"])
        for name, python in pythons.items()
    }
    rows = []
    totals = [dict.fromkeys(workers, 0.0) for _ in range(options.rounds)]
    for index, shape in enumerate(SHAPES):
        rounds = [{name: float(w.ask(f"time {index}")) for name, w in workers.items()} for _ in range(options.rounds)]
        sums = {name: json.loads(w.ask(f"sums {index}")) for name, w in workers.items()}
        for total, taken in zip(totals, rounds, strict=True):
            for name in taken:
                total[name] += shape.times * taken[name]
        work = shape.images * shape.outer * shape.inner // shape.group * (shape.result * shape.kernel) ** 2
        rows.append(_row(str(shape), rounds, work, sums))
    for worker in workers.values():
        worker.close()
    rows.append(_row("ResNet-20, batch 64", totals, None, None))
    from benchmarks.common import report

    report(f"Weight gradients of convolutions, {options.threads} threads", rows, json_path=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", help="interpreter of an environment with torch")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--engine", choices=("qgraph", "onnx", "torch"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _row(
    name: str, rounds: list[dict[str, float]], work: int | None, sums: dict[str, list[float]] | None
) -> dict[str, Any]:
    """Medians; `difference` is the largest one of some random projections of the gradients, relative to their size."""
    ours = statistics.median(r["qgraph"] for r in rounds)
    others = {f"{n} ms": 1e3 * statistics.median(r[n] for r in rounds) for n in rounds[0] if n != "qgraph"}
    ratios = {f"/ {n}": statistics.median(r["qgraph"] / r[n] for r in rounds) for n in rounds[0] if n != "qgraph"}
    apart = None
    if sums:
        values = np.array(list(sums.values()))
        apart = f"{np.abs(values - values[0]).max() / np.abs(values).max():.0e}"
    speed = work / ours / 1e9 if work else None
    return {"shape": name, "qgraph ms": 1e3 * ours, **others, **ratios, "10^9 products/s": speed, "difference": apart}


def _serve(engine: str, threads: int) -> None:
    made: dict[int, Callable[[], np.ndarray]] = {}

    def job(index: str) -> Callable[[], np.ndarray]:
        if int(index) not in made:
            made.clear()
            made[int(index)] = {"qgraph": _ours, "onnx": _graph, "torch": _torch}[engine](SHAPES[int(index)], threads)
            made[int(index)]()
        return made[int(index)]

    def sums(index: str) -> str:
        found = np.asarray(job(index)(), np.float64).ravel()
        return json.dumps((np.random.default_rng(1).standard_normal((4, found.size)) @ found).tolist())

    serve({"time": lambda index: best(job(index), seconds=0.3), "sums": sums})


def _ours(shape: Shape, threads: int) -> Callable[[], np.ndarray]:
    from qgraph.gradient import Correlation, weight_gradients

    x, g = shape.operands()
    pair = (shape.kernel, shape.kernel)
    strides, begin = (shape.stride, shape.stride), (shape.pad, shape.pad)
    correlation = Correlation(kernel=pair, strides=strides, begin=begin, group=shape.group)
    pool = ThreadPoolExecutor(max(threads - 1, 1))
    return lambda: weight_gradients([(x, g, correlation)], pool=pool, threads=threads)[0]


def _graph(shape: Shape, threads: int) -> Callable[[], np.ndarray]:
    """The form of the portable builder: a Conv of x with dL/dy, with batch and channels swapped."""
    import onnx_ir as ir

    from qgraph.gradient import gradients
    from qgraph.running.sessions import Session

    x, g = shape.operands()
    weight = f"{shape.outer}, {shape.inner // shape.group}, {shape.kernel}, {shape.kernel}"
    attributes = f"pads = {[shape.pad] * 4}, strides = {[shape.stride] * 2}, group = {shape.group}"
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 17]> '
        f"net (float{list(x.shape)} x, float[{weight}] w, float{list(g.shape)} g) => (float loss) "
        f"{{ y = Conv<{attributes}>(x, w) p = Mul(y, g) loss = ReduceSum<keepdims = 0>(p) }}"
    )
    session = Session(gradients(model, "loss", ["w"], builder="portable"), outputs=["w_grad"], threads=threads)
    feeds = {name: array for name, array in (("x", x), ("g", g)) if name in session.input_names}
    return lambda: session.run(feeds)["w_grad"]


def _torch(shape: Shape, threads: int) -> Callable[[], np.ndarray]:
    import torch

    torch.set_num_threads(threads)
    x, g = (torch.from_numpy(a) for a in shape.operands())
    weight = torch.zeros(shape.outer, shape.inner // shape.group, shape.kernel, shape.kernel)
    geometry = [shape.stride] * 2, [shape.pad] * 2, [1, 1], False, [0, 0], shape.group
    wanted = [False, True, False]
    return lambda: torch.ops.aten.convolution_backward(g, x, weight, [0], *geometry, wanted)[1].numpy()


if __name__ == "__main__":
    main()
