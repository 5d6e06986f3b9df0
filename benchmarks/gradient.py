"""One distillation step by every engine, side by side.

    python -m benchmarks.gradient MODEL [--torch PYTHON] [--training PYTHON] [--json FILE]

Engines: the portable builder on stock onnxruntime; PyTorch eager; the onnxruntime-training builder; and the forward
pass alone, twice of which is the lower bound. PyTorch and onnxruntime-training live in environments of their own,
named by their interpreters.
Every engine is a process of its own; they take turns, a few steps each, so that all see the same machine.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ENGINES = ("forward", "portable", "training", "torch")


def main() -> None:
    options = _options()
    if options.engine:
        _serve(options)
        return
    interpreters = {"forward": sys.executable, "portable": sys.executable}
    interpreters |= {name: p for name, p in (("training", options.training), ("torch", options.torch)) if p}
    workers = {name: _Worker(python, name, options) for name, python in interpreters.items()}
    rounds = [{name: worker.turn() for name, worker in workers.items()} for _ in range(options.rounds)]
    found = {name: worker.gradient() for name, worker in workers.items() if name != "forward"}
    peaks = {name: worker.close() for name, worker in workers.items()}
    from benchmarks.common import report

    title = f"{Path(options.model).name}: one distillation step, batch {options.batch}, {options.threads} threads"
    report(title, _rows(rounds, peaks, found), json_path=options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model with BatchNormalization and one image input")
    parser.add_argument("--torch", metavar="PYTHON", help="interpreter of an environment with torch")
    parser.add_argument("--training", metavar="PYTHON", help="interpreter of one with onnxruntime-training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    return parser.parse_args()


class _Worker:
    """A process that makes some steps whenever it is told to."""

    def __init__(self, python: str, engine: str, options: argparse.Namespace) -> None:
        arguments = [python, "-m", "benchmarks.gradient", options.model, "--engine", engine]
        for name in ("batch", "threads", "steps"):
            arguments += [f"--{name}", str(getattr(options, name))]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._read()

    def turn(self) -> float:
        """Seconds per step, the best of one turn."""
        return float(self._ask("go"))

    def gradient(self) -> np.ndarray:
        """dL/dx of the input that all engines are given."""
        with tempfile.TemporaryDirectory() as folder:
            return np.load(self._ask(f"gradient {folder}/gradient.npy"))

    def close(self) -> float:
        peak = float(self._ask("stop"))
        self.process.wait()
        return peak

    def _ask(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} failed")
        return line.strip()


def _serve(options: argparse.Namespace) -> None:
    step = _step(options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        if line.startswith("gradient"):
            np.save(path := line.split()[1], np.asarray(step()))
            print(path, flush=True)
            continue
        times = []
        for _ in range(options.steps):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        print(min(times), flush=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, flush=True)


def _step(options: argparse.Namespace) -> Callable[[], object]:
    from qgraph.model import load
    from qgraph.zeroq.objective import input_shapes, objective

    model = load(options.model)
    ((name, shape),) = input_shapes(model, batch=options.batch).items()
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if options.engine == "torch":
        return _torch_step(options, model, name, x)
    if options.engine == "forward":
        from qgraph.runtime import Session

        session = Session(model.ir_model, threads=options.threads)
        return lambda: session.run({name: x})
    goal = objective(model, batch=options.batch, per="image", threads=options.threads, builder=options.engine)
    return lambda: goal({name: x})[1][name]


def _torch_step(options: argparse.Namespace, model: Any, name: str, x: np.ndarray) -> Callable[[], object]:
    import torch

    from benchmarks.torch_net import TorchNet, distillation_loss
    from qgraph.model import normalise
    from qgraph.zeroq.statistics import batch_norms

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
    """Medians over rounds; ratios are taken within each round; differences are relative to the largest gradient."""
    ours = found["portable"]
    apart = {name: float(np.abs(g - ours).max() / np.abs(ours).max()) for name, g in found.items()}
    return [
        {
            "engine": name,
            "ms": 1e3 * statistics.median(r[name] for r in rounds),
            "/ (2 x forward)": statistics.median(r[name] / (2 * r["forward"]) for r in rounds),
            "/ portable": statistics.median(r[name] / r["portable"] for r in rounds),
            "peak MB of the steps": round(peaks[name], 1),
            "max difference": f"{apart[name]:.1e}" if name in apart else "",
        }
        for name in rounds[0]
    ]


if __name__ == "__main__":
    main()
