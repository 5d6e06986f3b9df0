"""One step of quantization-aware training, here and in PyTorch eager with its own learnable fake-quantize.

    PYTHON_WITH_TORCH -m benchmarks.finetune_step [--network resnet20 ...] [--bits 4] [--json FILE]

MobileNetV2 comes from the folder of `benchmarks.real` ($QGRAPH_REAL).

Both sides compute the forward pass with quantized weights and activations, the loss from labels and given logits of the
float model, the gradients of weights, biases and scales, and one update by Adam. They take turns in one process, on the
same threads.

For comparison there are lower bounds: the float model's forward pass in onnxruntime, three times that (a backward pass
has two convolutions for each one of the forward pass), and a step whose activations stay in floats.

The gradients of weights are compared for the targets of other images, which make them large. Both differentiate the
same function; they differ where a value is within rounding of a threshold, and every layer multiplies such cases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import torch_net
from benchmarks.common import CIFAR, arguments, in_turn, report
from benchmarks.papers.networks import network
from qgraph.gradient.step import TrainingStep
from qgraph.graph.sites import GraphView
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.lsqplus.initialise import initialise
from qgraph.methods.lsqplus.loss import one_hot, targets_of
from qgraph.methods.lsqplus.optimise import optimiser
from qgraph.methods.lsqplus.parameters import absorb
from qgraph.methods.lsqplus.step import trainable_graph, training_graph
from qgraph.methods.lsqplus.trained import Trained
from qgraph.observe.statistics import observe
from qgraph.onnxfile.model import Model
from qgraph.plan.grids import initial_plan
from qgraph.plan.plan import QuantPlan
from qgraph.plan.request import choose_recipe
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

CONFIG = LsqPlusConfig()
BATCHES = {"resnet20": 64, "silu_se": 64, "relu6_dw": 64, "mobilenetv2": 16}


def main() -> None:
    given = arguments(
        __doc__,
        lambda p: p.add_argument("--network", nargs="+", choices=BATCHES, default=list(BATCHES)),
        lambda p: p.add_argument("--bits", type=int, default=4),
        lambda p: p.add_argument("--rounds", type=int, default=20),
    )
    threads = given.threads or 2
    torch.set_num_threads(threads)
    rows = [_row(name, given.bits, given.rounds, threads) for name in given.network]
    report(f"One training step at W{given.bits}A{given.bits}, {threads} threads", rows, json_path=given.json)


def _row(name: str, bits: int, rounds: int, threads: int) -> dict[str, Any]:
    net = network(name).net
    plan, batch = _problem(name, bits)
    trained = absorb(net, plan, CONFIG)
    ours, theirs = _ours(net, trained, batch, threads), _torch(trained, batch)
    apart = _difference(ours(), theirs())
    forward = Session(net.ir_model, threads=threads)
    feeds = {name: batch[name] for name in forward.input_names}
    floats = _ours(net, absorb(net, dataclasses.replace(plan, activations=()), CONFIG), batch, threads)
    engines = {"here": ours, "torch": theirs, "floats": floats, "forward": lambda: forward.run(feeds)}
    seconds = in_turn(engines, runs=rounds, warmup=2)
    return {
        "network": name,
        "batch": BATCHES[name],
        "ms": 1e3 * seconds["here"],
        "torch ms": 1e3 * seconds["torch"],
        "torch / this": seconds["torch"] / seconds["here"],
        "this / (3 x forward)": seconds["here"] / (3 * seconds["forward"]),
        "activations in floats / (3 x forward)": seconds["floats"] / (3 * seconds["forward"]),
        "largest difference": f"{apart:.1e}",
    }


def _problem(name: str, bits: int) -> tuple[QuantPlan, dict[str, Any]]:
    """The plan to start from, and one batch with its labels and the float model's logits."""
    net, labelled = network(name).net, network(name).test(BATCHES[name])
    data, labels = open_data(labelled, net, preprocessing=CIFAR), labelled["labels"]
    view, observed = GraphView(net), observe(net, data)
    recipe = choose_recipe("lsqplus", True, weights=bits, activations=bits)
    plan = initialise(initial_plan(view, recipe, observed), view, observed, config=CONFIG)
    feeds = next(data.batches(BATCHES[name])).feeds
    logits = Session(net.ir_model).run(feeds)["logits"]
    wrong = {"labels": one_hot(np.roll(labels, 1), logits.shape[1]), "float:logits": np.roll(logits, 1, axis=0)}
    return plan, {**feeds, **wrong}


def _ours(net: Model, trained: Trained, batch: dict[str, Any], threads: int) -> Callable[[], dict[str, Any]]:
    size = min(CONFIG.shard, -(-len(batch["labels"]) // threads))
    targets = targets_of(trained.net.ir_model, net.source)
    step = TrainingStep(training_graph(trained, targets, CONFIG, batch=size, labelled=True), threads=threads)
    shards = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, len(batch["labels"]), size)]
    values, moving = trained.start.copy(), optimiser("adam", trained.size, momentum=0.9)
    rate, steps = np.full(trained.size, 1e-6, np.float32), 0

    def run() -> dict[str, Any]:
        nonlocal steps
        steps += 1
        _, found = step(trained.feeds(values), shards)
        gradient = trained.gradient(values, found)
        gradient *= trained.per_value("factor")
        moving.update(values, gradient, rate, steps)
        return {name: trained.view(gradient, name) for name in trained.slots}

    return run


def _torch(trained: Trained, batch: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    net = torch_net.TorchNet(trainable_graph(trained, batch=len(batch["labels"])))
    torch_net._OPERATORS["LearnedQuantize"] = _fake_quantize
    leaves = {
        name: torch.from_numpy(trained.view(trained.start, name).copy()).requires_grad_() for name in trained.slots
    }
    optimiser = torch.optim.Adam(leaves.values(), lr=1e-6)
    fed = {name: torch.from_numpy(array) for name, array in batch.items()}
    zeros = {grid.key: torch.tensor([float(trained.grid_values(trained.start, grid)[1])]) for grid in trained.grids}
    none = {f"{kind}:{grid.key}": None for kind in ("low", "high", "offset") for grid in trained.grids}

    def run() -> dict[str, Any]:
        optimiser.zero_grad()
        values: dict[str, Any] = {**fed, **none, **leaves}
        for name, grid in trained.weights.items():
            weight, scale = leaves[f"weight:{name}"], leaves[f"weight_scale:{name}"]
            zero, quant = torch.zeros_like(scale), grid.quant
            values[f"weight:{name}"] = torch._fake_quantize_learnable_per_channel_affine(
                weight, scale, zero, quant.granularity.axis or 0, quant.qmin, quant.qmax, 1.0
            )
        values |= {f"zero_point:{key}": zero for key, zero in zeros.items()}
        logits = net(values)["logits"]
        t, share = CONFIG.temperature, CONFIG.label_weight
        soft = F.log_softmax(fed["float:logits"] / t, 1)
        distance = F.kl_div(F.log_softmax(logits / t, 1), soft, reduction="sum", log_target=True)
        loss = share * -(fed["labels"] * F.log_softmax(logits, 1)).sum() + (1 - share) * t * t * distance
        loss.backward()
        factors = {name: trained.slots[name].factor for name in leaves}
        for name, leaf in leaves.items():
            if leaf.grad is not None:
                leaf.grad *= factors[name]
        optimiser.step()
        return {name: leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}

    return run


def _fake_quantize(net: Any, node: Any, x: list[Any]) -> Any:
    limit, offset = node.attributes["qmax"].as_int(), x[5] if node.attributes["shifted"].as_int() else None
    moved = x[0] if offset is None else x[0] - offset
    found = torch._fake_quantize_learnable_per_tensor_affine(moved, x[1], x[4], 0, limit, 1.0)
    return found if offset is None else found + offset


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest relative difference of a weight's gradient, in the Euclidean norm.

    Weights that only one side counts as clipped are left out: PyTorch checks the rounded value.
    """

    def apart(mine: Any, other: Any) -> float:
        both = (mine == 0) == (other == 0)
        return float(np.linalg.norm((mine - other)[both]) / np.linalg.norm(other[both]))

    return max(apart(ours[n], theirs[n]) for n in theirs if n.startswith("weight:"))


if __name__ == "__main__":
    main()
