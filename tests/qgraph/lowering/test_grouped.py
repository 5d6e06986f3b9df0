"""Groups of inputs with steps of their own, in files that run on integers and in those that run in floats."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.errors import PlanError, UsageError
from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.onnxfile.load import load
from qgraph.plan import codes
from qgraph.plan.changes import parsed
from qgraph.plan.edit import edited
from qgraph.plan.grouped import largest_number
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session
from qmath import Granularity


def network() -> onnx.ModelProto:
    """A table, a MatMul, and a Gemm with a transposed weight; rows of unlike size make groups worth it."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (int64[n] words) => (float[n, 24] y) {
        x = Gather(table, words)
        h = MatMul(x, w)
        y = Gemm<transB = 1>(h, v, c)
    }"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(29)
    sizes = {"table": (300, 72), "w": (72, 100), "v": (24, 100), "c": (24,)}
    sized = {name: rng.laplace(size=size) * rng.uniform(0.2, 2, size[-1:]) for name, size in sizes.items()}
    sized["w"] *= rng.uniform(0.2, 2, (72, 1))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in sized.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return model


WORDS = {"words": np.arange(300)}


def db(want: np.ndarray, have: np.ndarray) -> float:
    noise = np.square(want.astype(np.float64) - have).sum()
    return float(10 * np.log10(np.square(want, dtype=np.float64).sum() / max(noise, 1e-30)))


def quantize(**options):
    return qgraph.quantize(network(), **{"weights": 4, "edge_bits": 4, "activations": None, "measure": False} | options)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.filterwarnings("ignore:the errors of all weights")  # 2 bits
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_file_computes_what_the_plan_says_in_floats(bits: int, symmetric: bool, packed: bool) -> None:
    result = quantize(weights=bits, edge_bits=bits, group=16, symmetric=symmetric)
    assert [layer.weight.granularity.group for layer in result.plan.layers if layer.op != "Gather"] == [16, 16]
    simulated = Session(lower(result.net, result.plan, format="float")).run_list(WORDS)
    in_file = Session(lower(result.net, result.plan, format="qdq", packed=packed)).run_list(WORDS)
    assert db(simulated[0], in_file[0]) > 110


@pytest.mark.parametrize("bits", [2, 4])
def test_file_computes_what_the_plan_says_on_integers(bits: int) -> None:
    result = quantize(weights=bits, edge_bits=bits, group=16, activations="dynamic")
    assert all(layer.weight.unit for layer in result.plan.layers)
    assert all(largest_number(layer.weight) <= (127 if layer.op == "Gather" else 64) for layer in result.plan.layers)
    simulated = Session(lower(result.net, result.plan, format="float")).run_list(WORDS)
    assert db(simulated[0], Session(result.model).run_list(WORDS)[0]) > 50  # half-way values may go either way
    fused = inspect_fused(load(ir.to_proto(result.model)))
    assert {layer.name: layer.integer for layer in fused.layers} == {"h": True, "y": True}


def test_static_grids_read_groups_too() -> None:
    words = {"words": np.arange(256)}
    result = qgraph.quantize(network(), words, weights=4, edge_bits=4, activations=8, measure=False)
    assert [layer.runs for layer in result.plan.layers if layer.op != "Gather"] == ["integers", "integers"]
    simulated = Session(lower(result.net, result.plan, format="float")).run_list(WORDS)
    # the kernel rounds the bias, and half-way values of a 4-bit operand may go either way
    assert db(simulated[0], Session(result.model).run_list(WORDS)[0]) > 40


def test_closer_to_floats_than_one_step_per_channel() -> None:
    want = Session(load(network()).ir_model).run_list(WORDS)[0]
    for activations in (None, "dynamic"):
        have = [
            Session(quantize(activations=activations, group=group).model).run_list(WORDS)[0] for group in (16, "none")
        ]
        assert db(want, have[0]) > db(want, have[1]) + 1


def test_groups_are_unasked_up_to_four_bits_and_only_where_steps_are_fine_enough() -> None:
    def groups(**options):
        return [layer.weight.granularity.group for layer in quantize(**options).plan.layers]

    assert groups() == [32, 32, 32]
    assert groups(method="minmax", group=None) == groups(weights=5, edge_bits=5, group="none") == [None, None, None]
    assert groups(weights=5, edge_bits=5) == [8, 8, None], "without data, the noisiest layers"
    assert groups(activations="dynamic", weights=6, edge_bits=6, group=16)[:2] == [None, None]
    assert groups(activations="dynamic", weights=4, edge_bits=4, target_cpu="vnni") == [32, 32, 32]


def test_plan_round_trips_to_the_same_bytes() -> None:
    result = quantize()
    plan = QuantPlan.from_json(result.plan.to_json())
    assert plan == result.plan
    whole = lower(result.net, plan, format="qdq")
    assert ir.to_proto(whole).SerializeToString() == ir.to_proto(result.model).SerializeToString()
    quant = next(layer.weight for layer in plan.layers if layer.name == "h")
    assert codes.kernel_scale(quant).shape == (100,)
    assert quant.multiples.shape == (3, 100)


def test_errors_say_what_is_wrong() -> None:
    result = quantize()
    layer = next(layer for layer in result.plan.layers if layer.name == "h")
    with pytest.raises(PlanError, match="a whole multiple of its channel's unit"):
        dataclasses.replace(layer.weight, scale=(layer.weight.scale[0] * 1.01, *layer.weight.scale[1:]))
    loose = dataclasses.replace(layer, weight=dataclasses.replace(layer.weight, unit=()))
    with pytest.raises(PlanError, match="no unit per channel"):
        lower(result.net, result.plan.map_layers(lambda q: loose if q.name == "h" else q), format="qdq")
    bytewise = dataclasses.replace(layer, runs="dynamic")
    with pytest.raises(PlanError, match="codes times their multiples reach"):
        lower(result.net, result.plan.map_layers(lambda q: bytewise if q.name == "h" else q), format="qdq")
    with pytest.raises(PlanError, match="a weight grid has units where groups"):
        dataclasses.replace(layer.weight, granularity=Granularity(axis=0))
    with pytest.raises(PlanError, match="scales of groups do not fit"):
        dataclasses.replace(layer.weight, unit=layer.weight.unit[:-1])
    with pytest.raises(PlanError, match="a weight grid with units has one gain"):
        dataclasses.replace(layer.weight, gain=(1.0, 2.0))
    with pytest.raises(UsageError, match="group must be a number of inputs from 2 on"):
        quantize(group=1)
    with pytest.raises(UsageError, match="group is for grids by least squares"):
        quantize(group=32, per_channel=False)


@pytest.mark.parametrize("activations", [None, "dynamic"])
def test_other_bits_for_a_layer_make_its_groups_anew(activations) -> None:
    result = quantize(activations=activations)
    for bits in (2, 8):
        other = edited(result.plan, GraphView(result.net), parsed([f"h:weights={bits}"]))
        quant = other.layer("h").weight
        assert quant.bits == bits
        assert (quant.granularity.group is None) == (bits == 8 and activations is not None)
        simulated = Session(lower(result.net, other, format="float")).run_list(WORDS)
        assert db(simulated[0], Session(lower(result.net, other, format="qdq")).run_list(WORDS)[0]) > 50
