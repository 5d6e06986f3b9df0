"""The three stages of ZeroQ in PyTorch, written for the comparison: distilling, sensitivities, frontier."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.torch_net import TorchNet, distillation_loss
from qgraph.graph.sites import GraphView
from qgraph.methods.zeroq.objective import input_shapes
from qgraph.methods.zeroq.statistics import batch_norms
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise

STEPS, RATE = 500, 0.5
Table = list[list[tuple[int, float]]]  # per layer: (bytes, sensitivity) of each choice


def stages(path: Path, *, bits: tuple[int, ...], count: int, threads: int, seed: int) -> dict[str, float]:
    """The seconds of each stage and of all, from the file to the chosen bits."""
    if threads:
        torch.set_num_threads(threads)
    seconds: dict[str, float] = {}
    began = lap = time.perf_counter()
    loaded = load(path)

    def done(stage: str) -> None:
        nonlocal lap
        seconds[stage] = round(time.perf_counter() - lap, 4)
        lap = time.perf_counter()

    ((name, shape),) = input_shapes(loaded, batch=count).items()
    x = distilled(loaded, name, shape, seed)
    done("distill")
    table = sensitivities(loaded, name, x, bits)
    done("sensitivity")
    frontier(table)
    done("frontier")
    seconds["total"] = round(time.perf_counter() - began, 4)
    return seconds


def distilled(loaded: Any, name: str, shape: tuple[int, ...], seed: int) -> Any:
    """Distil one batch by Adam on the statistics of BatchNormalization, with a plateau schedule."""
    plain = normalise(loaded, fold_bn=False).ir_model
    net = TorchNet(plain)
    zero, one = torch.zeros(shape[1]), torch.ones(shape[1])
    targets = [(b.input, torch.from_numpy(b.mean).float(), torch.from_numpy(b.std).float()) for b in batch_norms(plain)]
    torch.manual_seed(seed)
    x = ((torch.rand(shape) * 2 - 1) * 0.0235).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, min_lr=1e-4, patience=100)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = distillation_loss(net({name: x}), [(name, zero, one), *targets])
        loss.backward()
        optimiser.step()
        schedule.step(loss.item())
    return x.detach()


@torch.no_grad()
def sensitivities(loaded: Any, name: str, x: Any, bits: tuple[int, ...]) -> Table:
    """KL(float || one layer at k bits), running the whole network for every pair; min-max weights per channel."""
    net = normalise(loaded)
    view = GraphView(net)
    runner = TorchNet(net.ir_model)
    output = str(net.graph.outputs[0].name)
    expected = torch.log_softmax(runner({name: x})[output], dim=1)
    table: Table = []
    for layer in view.layers:
        key = str(layer.weight.name)
        floats = runner.constants[key]
        row = []
        for k in bits:
            runner.constants[key] = rounded(floats, k, layer.output_axis)
            produced = torch.log_softmax(runner({name: x})[output], dim=1)
            kl = torch.nn.functional.kl_div(produced, expected, reduction="batchmean", log_target=True)
            row.append((k * -(-floats.numel() // 8), max(float(kl), 0.0)))
        runner.constants[key] = floats
        table.append(row)
    return table


def rounded(weight: Any, bits: int, axis: int) -> Any:
    others = tuple(i for i in range(weight.ndim) if i != axis)
    low, high = weight.amin(others, keepdim=True), weight.amax(others, keepdim=True)
    scale = (high - low).clamp_min(1e-12) / (2**bits - 1)
    return ((weight - low) / scale).round() * scale + low


def frontier(table: Table) -> tuple[Any, Any]:
    """The least sensitivity at every size, by dynamic programming over sizes in units of the common divisor."""
    unit = int(np.gcd.reduce([size for row in table for size, _ in row]))
    total = sum(max(size for size, _ in row) for row in table) // unit
    cost = torch.full((total + 1,), float("inf"), dtype=torch.float64)
    cost[0] = 0.0
    choices = []
    for row in table:
        tried = torch.full((len(row), total + 1), float("inf"), dtype=torch.float64)
        for index, (size, omega) in enumerate(row):
            tried[index, size // unit :] = cost[: total + 1 - size // unit] + omega
        cost, chosen = tried.min(dim=0)
        choices.append(chosen)
    return cost, choices
