"""Operators on integers and their float counterparts between grids compute the same, operator by operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import qgraph
from qgraph.lowering.lift import lift
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session

RNG = np.random.default_rng(53)
MS = "com.microsoft"
U8, F32, S8, S32 = (onnx.TensorProto.DataType.Value(name) for name in ("UINT8", "FLOAT", "INT8", "INT32"))


def model(nodes, shape, **constants):
    """A graph of these nodes from the floats `x` to the floats `y`."""
    for index, node in enumerate(nodes):
        node.name = f"node{index}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F32, shape)],
        [helper.make_tensor_value_info("y", F32, [f"d{i}" for i in range(len(shape))])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op, inputs, outputs=("r",), domain=MS, **attributes):
    return helper.make_node(op, inputs, list(outputs), domain=domain, **attributes)


SIX = {"sx": np.float32(0.04), "zx": np.uint8(100), "sy": np.float32(0.05), "zy": np.uint8(120)}
BEFORE = node("QuantizeLinear", ["x", "sx", "zx"], ["q"], domain="")
AFTER = node("DequantizeLinear", ["r", "sy", "zy"], ["y"], domain="")
WEIGHT = RNG.integers(-64, 65, (6, 5)).astype(np.int8)  # no two products leave 16 bits, on any processor
COLUMNS = np.linspace(0.004, 0.02, 5, dtype=np.float32)
Z5 = np.zeros(5, np.int8)

CASES = {
    "QLinearMatMul": ([node("QLinearMatMul", ["q", "sx", "zx", "w", "sw", "zw", "sy", "zy"], domain="")], WEIGHT),
    "QLinearMatMul, a step per column": (
        [node("QLinearMatMul", ["q", "sx", "zx", "w", "columns", "zeros", "sy", "zy"], domain="")],
        WEIGHT,
    ),
    "QLinearMatMul, steps as vectors of one": (
        [node("QLinearMatMul", ["q", "sx", "zx", "w", "sw1", "zw1", "sy1", "zy1"], domain="")],
        WEIGHT,
    ),
    "QGemm": ([node("QGemm", ["q", "sx", "zx", "w", "columns", "zeros", "c", "sy", "zy"], alpha=1.0)], WEIGHT),
    "QGemm, transposed": (
        [node("QGemm", ["q", "sx", "zx", "w", "columns", "zeros", "c", "sy", "zy"], alpha=1.0, transB=1)],
        np.ascontiguousarray(WEIGHT.T),
    ),
    "QGemm without a bias": ([node("QGemm", ["q", "sx", "zx", "w", "sw", "zw", "", "sy", "zy"], alpha=1.0)], WEIGHT),
    "QLinearAdd": ([node("QLinearAdd", ["q", "sx", "zx", "row", "sr", "zr", "sy", "zy"])], WEIGHT),
    "QLinearMul": ([node("QLinearMul", ["q", "sx", "zx", "row", "sr", "zr", "sy", "zy"])], WEIGHT),
    "QLinearSigmoid": ([node("QLinearSigmoid", ["q", "sx", "zx", "sy", "zy"])], WEIGHT),
    "QLinearLeakyRelu": ([node("QLinearLeakyRelu", ["q", "sx", "zx", "sy", "zy"], alpha=0.2)], WEIGHT),
    "QLinearConcat": ([node("QLinearConcat", ["sy", "zy", "q", "sx", "zx", "row", "sr", "zr"], axis=0)], WEIGHT),
}


@pytest.mark.parametrize("case", CASES)
def test_static_operators(case):
    between, weight = CASES[case]
    constants = SIX | {
        "w": weight,
        "sw": np.float32(0.01),
        "zw": np.int8(0),
        "sw1": np.full(1, 0.01, np.float32),
        "zw1": Z5[:1],
        "columns": COLUMNS,
        "zeros": Z5,
    }
    constants["c"] = (RNG.normal(size=5) / (0.04 * COLUMNS)).astype(np.int32)
    constants |= {"sy1": np.full(1, SIX["sy"]), "zy1": np.full(1, SIX["zy"])}
    constants |= {"row": RNG.integers(0, 256, (1, 6)).astype(np.uint8), "sr": np.float32(0.03), "zr": np.uint8(90)}
    net = model([BEFORE, *between, AFTER], [4, 6], **constants)
    x = RNG.uniform(-4, 6.2, (4, 6)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    want = onnxruntime.InferenceSession(net.SerializeToString(), options).run(None, {"x": x})[0]
    found = lift(load(net))
    assert not {n.op_type for n in found.model.graph} & {"QuantizeLinear", "DequantizeLinear"}
    on_grid = (np.clip(np.rint(x / SIX["sx"]) + 100, 0, 255) - 100) * SIX["sx"]
    have = Session(found.model.ir_model).run({"x": on_grid.astype(np.float32)})["y"]
    (ends,) = (grid.ends for name, grid in found.activations.items() if name != "x")
    assert ends == pytest.approx((-6.0, 6.75))
    np.testing.assert_allclose(np.clip(have, *ends), want, atol=0.5 * 0.05 + 1e-3)
    assert (np.abs(np.clip(have, *ends) - want) > 0.01).mean() > 0.1, "rounded by one and not by the other"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [np.float32(0.01), COLUMNS], ids=["one", "columns"])
def test_a_fused_dynamic_product(steps, bias):
    inputs = ["x", "w", "s", "p"] + (["c"] if bias else [])
    constants = {"w": WEIGHT, "s": steps, "p": np.zeros(np.shape(steps), np.int8)}
    c = RNG.normal(size=5).astype(np.float32) if bias else np.zeros(5, np.float32)
    net = model([node("DynamicQuantizeMatMul", inputs, ["y"])], [4, 6], **constants | ({"c": c} if bias else {}))
    found = lift(load(net))
    x = RNG.normal(size=(4, 6)).astype(np.float32)
    have = Session(found.model.ir_model).run({"x": x})["y"]
    np.testing.assert_allclose(have, x @ (WEIGHT * steps) + c, rtol=1e-4, atol=1e-4)
    assert len(found.dynamic) == 1
    assert [layer.runs for layer in qgraph.adopt(net, measure=False).layers] == ["dynamic"]


@pytest.mark.parametrize("zeros", ["none", "bytes", "floats"])
@pytest.mark.parametrize(("bits", "block", "columns"), [(4, 16, 32), (4, 16, 40), (8, 32, 64), (2, 16, 32)])
def test_blocks(bits, block, columns, zeros):
    """(code - zero point) scale, the first code in the lowest bits; the last block may be cut."""
    blocks = -(-columns // block)
    codes = RNG.integers(0, 2**bits, (3, blocks, block))
    points = RNG.integers(0, 2**bits, (3, blocks)) if zeros != "none" else np.full((3, blocks), 2 ** (bits - 1))
    scale = RNG.uniform(0.01, 0.1, (3, blocks)).astype(np.float32)

    def packed(array):
        each = 8 // bits
        padded = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % each)])
        lanes = padded.reshape(*padded.shape[:-1], -1, each)
        return (lanes << (bits * np.arange(each))).sum(-1).astype(np.uint8)

    constants = {"b": packed(codes), "s": scale.reshape(-1)}
    if zeros == "bytes":
        constants["p"] = packed(points).reshape(-1)
    if zeros == "floats":
        constants["p"] = points.astype(np.float32)
    inputs = ["x", "b", "s"] + (["p"] if zeros != "none" else [])
    net = model(
        [node("MatMulNBits", inputs, ["y"], K=columns, N=3, bits=bits, block_size=block)], [2, columns], **constants
    )
    found = lift(load(net))
    real = ((codes - points[..., None]) * scale[..., None]).reshape(3, -1)[:, :columns]
    x = RNG.normal(size=(2, columns)).astype(np.float32)
    np.testing.assert_allclose(Session(found.model.ir_model).run({"x": x})["y"], x @ real.T, rtol=1e-4, atol=1e-4)


def test_what_does_not_match_stays():
    """Channels last, and weights in blocks that are not constant."""
    shifted = node("QLinearSigmoid", ["q", "sx", "zx", "sy", "zy"])
    pool = node("QLinearGlobalAveragePool", ["q", "sx", "zx", "sy", "zy"], channels_last=1)
    net = model([BEFORE, pool, AFTER], [1, 4, 4, 3], **SIX)
    assert "QLinearGlobalAveragePool" in {n.op_type for n in lift(load(net)).model.graph}
    assert "Sigmoid" in {n.op_type for n in lift(load(model([BEFORE, shifted, AFTER], [4, 6], **SIX))).model.graph}


NARROW = [
    BEFORE,
    node("Min", ["q", "top"], ["m"], domain=""),
    node("Pad", ["m", "pads", "fill"], ["r"], domain=""),
    node("DequantizeLinear", ["r", "sx", "zx"], ["y"], domain=""),
]


def test_a_min_on_codes_narrows_the_grid_and_pads_fill_with_reals():
    constants = SIX | {"top": np.uint8(163), "pads": np.array([0, 0, 1, 2]), "fill": np.uint8(110)}
    net = model(NARROW, [4, 6], **constants)
    found = lift(load(net))
    grid = found.activations["x"]
    assert (grid.low, grid.high) == (0, 163)
    x = RNG.uniform(-4, 2.5, (4, 6)).astype(np.float32)
    want = Session(load(net).ir_model).run({"x": x})["y"]
    have = Session(found.model.ir_model).run({"x": x})["y"]
    np.testing.assert_allclose(have, want, atol=0.021)
    np.testing.assert_allclose(have[4], 10 * 0.04, atol=1e-6)
