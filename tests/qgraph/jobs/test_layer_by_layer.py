"""How every product runs: the mix of whole plans that is most exact, and then fastest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import qgraph
from qgraph.jobs.layer_by_layer import traded
from qgraph.running.sessions import Session
from tests.corpus.transformers import Builder

Feeds = dict[str, np.ndarray]


def counts_then_loudness() -> onnx.ModelProto:
    """Small counts beside large ones, which a static grid of step 1 has exactly; then samples of any loudness.

    It takes one sample at a time: in a batch, loud ones would drown the others.
    """
    b = Builder(3)
    weight = b.random("first.weight", 16, 24)
    b.constants[weight][0] /= 100
    hidden = b.op("MatMul", "counts", weight, name="first")
    hidden = b.op("Tanh", b.op("Mul", hidden, b.constant("tenth", np.float32(0.1))))
    loud = b.op("MatMul", b.op("Mul", hidden, "loudness"), b.random("second.weight", 24, 8), name="second")
    b.nodes.append(helper.make_node("Div", [loud, "loudness"], ["y"], name="even"))
    sides = [("counts", 16), ("loudness", 1)]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in sides]
    return b.model(inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])])


def samples(count: int, seed: int = 5) -> Feeds:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 8, (count, 16)).astype(np.float32)
    counts[:, 0] = rng.integers(100, 256, count)
    counts[: count // 2, 0] = 255
    return {"counts": counts, "loudness": np.exp(rng.uniform(0, 6, (count, 1))).astype(np.float32)}


def db_of_single_samples(model: onnx.ModelProto, quantized: ir.Model, fed: Feeds) -> float:
    pair = Session(ir.from_proto(model)), Session(quantized)
    singles = [{name: array[i : i + 1] for name, array in fed.items()} for i in range(len(fed["counts"]))]
    want, have = (np.concatenate([session.run_list(one)[0] for one in singles]) for session in pair)
    return float(10 * np.log10(np.square(want).sum() / np.square(want - have).sum()))


def test_each_product_runs_in_the_way_that_is_best_for_it() -> None:
    model = counts_then_loudness()

    def quantized(**options: Any) -> qgraph.Result:
        return qgraph.quantize(model, samples(48), method="minmax", balance=False, guard="off", **options)

    mixed = quantized()
    assert {layer.name: layer.runs for layer in mixed.plan.layers} == {"first": "integers", "second": "dynamic"}
    assert any("1 on static grids, 1 on dynamic ones" in note for note in mixed.plan.notes)
    static, dynamic = quantized(activations=8), quantized(activations="dynamic")
    assert {layer.runs for layer in static.plan.layers} == {"integers"}
    fed = samples(64, seed=9)
    best = db_of_single_samples(model, mixed.model, fed)
    assert best > 0.5 + max(db_of_single_samples(model, other.model, fed) for other in (static, dynamic))


def test_the_least_noise_comes_first() -> None:
    noise = np.array([[[3.0], [1.0]], [[1.0], [3.0]]])
    assert traded(noise, np.zeros((2, 2)), rest=np.zeros(1), worth_db=0.5, matters=0.0) == [1, 0]


def test_time_is_saved_where_it_costs_least_noise() -> None:
    noise = np.array([[[1.0], [1.2]], [[1.0], [1.05]], [[1.0], [1.1]]])
    seconds = np.array([[5.0, 4.0], [5.0, 4.0], [5.0, 4.9]])
    limited = traded(noise, seconds, rest=np.array([0.5]), worth_db=0.1, matters=0.0)
    assert limited == [0, 1, 0]  # 0.1 dB of 3.5 are 0.08
    assert traded(noise, seconds, rest=np.array([0.5]), worth_db=1.0, matters=0.0) == [1, 1, 1]
    assert traded(noise, seconds, rest=np.array([0.5]), worth_db=1.0, matters=0.5) == [1, 1, 0]


@pytest.mark.parametrize("output", [0, 1])
def test_no_output_pays_more_than_it_may(output: int) -> None:
    noise = np.zeros((1, 2, 2))
    noise[0, 1, output] = 1.0
    rest = np.array([1.0, 1.0])
    rest[1 - output] = 100.0
    assert traded(noise, np.array([[2.0, 1.0]]), rest=rest, worth_db=0.5, matters=0.0) == [0]
    assert traded(noise, np.array([[2.0, 1.0]]), rest=100 * rest, worth_db=0.5, matters=0.0) == [1]
