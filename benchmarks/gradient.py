"""Compare one distillation step between engines.

    python -m benchmarks.gradient MODEL [--torch PYTHON] [--training PYTHON] [--json FILE]

Engines, every one a process of its own (`benchmarks.turns`):

* forward: the model as it is; twice that is the lower bound of a step;
* backward: d(sum of squared outputs)/d(input), a backward pass without a loss inside the network, in the same
  operators; the difference between this and the portable row is the cost of the loss;
* portable: the distillation step on stock onnxruntime;
* portable, 2 at once: time per step of two batches on half of the threads each, as `qgraph distill` runs them;
* training, torch: the gradients of onnxruntime-training, and PyTorch eager.

A second table shows where a step spends its time on one thread, by onnxruntime's profiler, beside the forward pass.
Convolutions cannot be avoided, so their time relative to two forward passes is a lower bound for any rewriting.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import Worker, best, serve

Step = Callable[[], Any]
OURS = ("forward", "backward", "portable", "pair")
LABELS = {"pair": "portable, 2 at once"}


def main() -> None:
    options = _options()
    if options.engine:
        _serve(options)
        return
    interpreters = dict.fromkeys(OURS, sys.executable)
    interpreters |= {name: p for name, p in (("training", options.training), ("torch", options.torch)) if p}
    workers = {name: _worker(python, name, options) for name, python in interpreters.items()}
    rounds = [{name: float(worker.ask("go")) for name, worker in workers.items()} for _ in range(options.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        compared = [name for name in workers if name not in ("forward", "backward", "pair")]
        found = {name: np.load(workers[name].ask(f"gradient {folder}/{name}.npy")) for name in compared}
    peaks = {name: worker.close() for name, worker in workers.items()}
    from benchmarks.common import report

    title = f"{Path(options.model).name}: one distillation step, batch {options.batch}, {options.threads} threads"
    report(title, _rows(rounds, peaks, found), json_path=options.json)
    report("Where one thread's time goes", _profiled(options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model with BatchNormalization and one image input")
    parser.add_argument("--torch", metavar="PYTHON", help="interpreter of an environment with torch")
    parser.add_argument("--training", metavar="PYTHON", help="interpreter of an environment with onnxruntime-training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds of steps per turn")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--engine", choices=(*OURS, "training", "torch"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _worker(python: str, engine: str, options: argparse.Namespace) -> Worker:
    numbers = [f"--{name}={getattr(options, name)}" for name in ("batch", "threads", "seconds")]
    return Worker(python, "benchmarks.gradient", [options.model, f"--engine={engine}", *numbers])


def _serve(options: argparse.Namespace) -> None:
    step = _step(options)
    for _ in range(3):
        step()

    def save(path: str) -> str:
        np.save(path, np.asarray(step()))
        return path

    batches = 2 if options.engine == "pair" else 1
    serve({"go": lambda _: best(step, seconds=options.seconds) / batches, "gradient": save})


def _step(options: argparse.Namespace) -> Step:
    from qgraph.methods.zeroq.objective import input_shapes, objective
    from qgraph.onnxfile.load import load
    from qgraph.running.sessions import Session

    model = load(options.model)
    ((name, shape),) = input_shapes(model, batch=options.batch).items()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if options.engine == "torch":
        return _torch_step(options, model, name, x)
    if options.engine == "forward":
        session = Session(model.ir_model, threads=options.threads)
        return lambda: session.run({name: x})
    if options.engine == "backward":
        session = Session(_plain_backward(model, name, shape), threads=options.threads)
        return lambda: session.run({name: x})
    pair = options.engine == "pair"
    builder = "portable" if pair else options.engine
    threads = max(options.threads // 2, 1) if pair else options.threads
    goal = objective(model, batch=options.batch, per="image", threads=threads, builder=builder)
    if not pair:
        return lambda: goal({name: x})[1][name]
    pool = ThreadPoolExecutor(2)
    return lambda: list(pool.map(goal, [{name: x}, {name: x}]))


def _plain_backward(model: Any, name: str, shape: tuple[int, ...]) -> Any:
    """d(sum of the first output's squares)/d(input), with BatchNormalization folded as for distillation."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    from qgraph.gradient import append, gradients, op, tensor
    from qgraph.onnxfile.normalise import normalise

    net = normalise(model).ir_model.clone()
    for value in net.graph.inputs:
        value.shape = ir.Shape(shape) if value.name == name else value.shape
    for node in net.graph:
        for value in node.outputs:
            value.shape = None
    ShapeInferencePass()(net)
    y = tensor(net.graph.outputs[0])
    append(net, op.ReduceSum(y * y, keepdims=0), name="sum_of_squares")
    net.graph.outputs[:] = net.graph.outputs[-1:]
    return gradients(net, "sum_of_squares", [name], builder="portable")


def _torch_step(options: argparse.Namespace, model: Any, name: str, x: np.ndarray) -> Callable[[], object]:
    import torch

    from benchmarks.torch_net import TorchNet, distillation_loss
    from qgraph.methods.zeroq.statistics import batch_norms
    from qgraph.onnxfile.normalise import normalise

    torch.set_num_threads(options.threads)
    plain = normalise(model, fold_bn=False).ir_model
    net = TorchNet(plain)
    zero, one = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    targets = [(b.input, torch.from_numpy(b.mean).float(), torch.from_numpy(b.std).float()) for b in batch_norms(plain)]
    image = torch.from_numpy(x)

    def step() -> object:
        leaf = image.detach().requires_grad_()
        distillation_loss(net({name: leaf}), [(name, zero, one), *targets]).backward()
        return leaf.grad

    return step


def _rows(
    rounds: list[dict[str, float]], peaks: dict[str, float], found: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Medians over rounds; ratios are taken within a round; differences are relative to the largest gradient."""
    ours = found["portable"]
    apart = {name: float(np.abs(g - ours).max() / np.abs(ours).max()) for name, g in found.items()}
    return [
        {
            "engine": LABELS.get(name, name),
            "ms": 1e3 * statistics.median(r[name] for r in rounds),
            "/ (2 x forward)": statistics.median(r[name] / (2 * r["forward"]) for r in rounds),
            "/ portable": statistics.median(r[name] / r["portable"] for r in rounds),
            "peak MB of the steps": round(peaks[name], 1),
            "max difference": f"{apart[name]:.1e}" if name in apart else "",
        }
        for name in rounds[0]
    ]


KINDS = {
    "convolutions": ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul"),
    "layout changes": ("ReorderInput", "ReorderOutput", "Transpose"),
    "elementwise": ("Add", "Sum", "Mul", "Sub", "Div", "Relu", "HardSigmoid", "Clip", "Sigmoid", "Where"),
    "pooling and sums": ("GlobalAveragePool", "AveragePool", "MaxPool", "ReduceMean", "ReduceSum"),
}


def _profiled(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The milliseconds of the forward pass and of a step by type of operator."""
    from qgraph.methods.zeroq.objective import input_shapes, step_model
    from qgraph.onnxfile.load import load

    model = load(options.model)
    ((name, shape),) = input_shapes(model, batch=options.batch).items()
    x = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    forward = _profile(model.ir_model, x)
    step = _profile(step_model(model, batch=options.batch, per="image").model, x)
    rows = [{"operators": k, "forward ms": forward[k], "step ms": step[k]} for k in (*KINDS, "others")]
    rows.append({"operators": "all", "forward ms": sum(forward.values()), "step ms": sum(step.values())})
    return [{**row, "/ (2 x forward)": row["step ms"] / (2 * rows[-1]["forward ms"])} for row in rows]


def _profile(model: Any, feeds: dict[str, np.ndarray], runs: int = 20) -> dict[str, float]:
    """The median milliseconds of every type of operator in a run on one thread."""
    import onnx_ir as ir
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 3
        settings.enable_profiling, settings.profile_file_prefix = True, f"{folder}/profile"
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), settings)
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"] / 1e3)
    kind_of = {op: kind for kind, ops in KINDS.items() for op in ops}
    sums = dict.fromkeys((*KINDS, "others"), 0.0)
    for (op, _), times in taken.items():
        sums[kind_of.get(op, "others")] += statistics.median(times)
    return sums


if __name__ == "__main__":
    main()
