"""Grids of files: ranges that no value can leave, and the fewest bits that hold a weight's codes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qgraph.errors import ModelError
from qgraph.graph.sites import GraphView
from qgraph.lowering.adopted import FileRanges, adopted_plan
from qgraph.lowering.lift import FileGrid, FileWeight, Lifted, lift
from qgraph.lowering.simulate import simulate
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes
from qgraph.running.sessions import Session

RNG = np.random.default_rng(41)
HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('


def grid(low, high, bits=8):
    """An unsigned grid over low..high."""
    step = np.float32((high - low) / (2**bits - 1))
    point = np.array(round(-low / float(step)))
    return FileGrid(scale=np.asarray(step), zero_point=point, low=0, high=2**bits - 1)


OPERATORS = {
    "Add(a, b)": (-3.0, 7.0),
    "Mul(a, b)": (-10.0, 10.0),
    "Concat<axis=0>(a, b)": (-2.0, 5.0),
    "Relu(a)": (0.0, 2.0),
    "Relu(b)": (0.0, 5.0),
    "Clip(b, low, high)": (-0.5, 1.0),
    "Clip(b, low)": (-0.5, 5.0),
    "Clip(b, , high)": (-1.0, 1.0),
    "Clip(b)": (-1.0, 5.0),
    "Add(a, low)": (-2.5, 1.5),
    "Mul(a, low)": (-1.0, 1.0),
    "Sigmoid(a)": (0.0, 1.0),
    "Tanh(a)": (-1.0, 1.0),
    "Softmax(a)": (0.0, 1.0),
    "HardSigmoid(a)": (0.0, 1.0),
    "ReduceMean<axes=[1]>(b)": (-1.0, 5.0),
    "ReduceMax<axes=[1]>(b)": (-1.0, 5.0),
    "Transpose(b)": (-1.0, 5.0),
    "Neg(a)": (0.0, 0.0),
    "Exp(b)": (0.0, 0.0),
}


@pytest.mark.parametrize("call", OPERATORS)
def test_ranges_follow_from_the_operator(model_from_text, call):
    """(0, 0) where it does not tell; what is computed from a and b never leaves the range."""
    text = f"float[4,4] a, float[4,4] b, float low, float high) => (float[H,W] y) {{ y = {call} }}"
    ends = {"low": np.float32(-0.5), "high": np.float32(1.0)}
    net = load(model_from_text(HEAD + text, **{n: np.asarray(v) for n, v in ends.items()}))
    view = GraphView(normalise(net))
    ranges = FileRanges(view, {"a": grid(-2.0, 2.0), "b": grid(-1.0, 5.0)})
    found = ranges.range_of("y")
    assert found == pytest.approx(OPERATORS[call], abs=0.1)
    if OPERATORS[call] != (0.0, 0.0):
        feeds = {"a": RNG.uniform(-2, 2, (4, 4)), "b": RNG.uniform(-1, 5, (4, 4))}
        session = Session(net.ir_model)
        y = session.run({n: feeds[n].astype(np.float32) for n in session.input_names})["y"]
        assert found[0] - 0.1 <= y.min() <= y.max() <= found[1] + 0.1
    assert ranges.range_of("a") == pytest.approx((-2.0, 2.0), abs=0.02)


class Observed:
    """Samples that know one tensor."""

    def range_of(self, tensor):
        return {"y": (-7.0, 3.0)}[tensor]


def test_samples_tell_what_the_file_does_not(model_from_text):
    text = "float[4,4] a) => (float[4,4] y, float[4,4] z) { y = Neg(a)  z = Exp(a) }"
    view = GraphView(load(model_from_text(HEAD + text)))
    assert FileRanges(view, {"a": grid(-2.0, 2.0)}, Observed()).range_of("y") == (-7.0, 3.0)
    assert FileRanges(view, {"a": grid(-2.0, 2.0)}, Observed()).range_of("z") == (0.0, 0.0)
    assert FileRanges(view, {"y": grid(0.0, 2.0)}, Observed()).range_of("y") == pytest.approx((0.0, 2.0), abs=0.02)


def lifted(model_from_text, weight, scale, axis):
    """A product whose weight a file holds on a grid, and the operand on another."""
    text = "float[N,6] x, float[6,5] w) => (float[N,5] y) { [layer] y = MatMul(x, w) }"
    net = normalise(load(model_from_text(HEAD + text, w=weight)))
    view = GraphView(net)
    (layer,) = view.layers
    held = FileGrid(
        scale=np.asarray(scale, np.float32), zero_point=np.zeros(1, np.int64), low=-128, high=127, axis=axis
    )
    grids = {name: grid(-2.0, 2.0) for name in ("x", "y")}
    weights = {(str(layer.node.name), 1): FileWeight(values=weight, grid=held)}
    return view, Lifted(model=net, activations=grids, weights=weights, dynamic=frozenset())


@pytest.mark.parametrize("axis", [None, 1, -1])
@pytest.mark.parametrize(
    ("low", "high", "times", "bits"),
    [(-127, 127, 1, 8), (-8, 7, 1, 4), (-7, 7, 1, 4), (-1, 1, 1, 2), (-7, 7, 18, 4), (0, 15, 1, 4), (0, 0, 1, 2)],
)
def test_the_fewest_bits_that_hold_the_codes(model_from_text, low, high, times, bits, axis):
    """Multiples of a number are divided by it; codes on one side of zero are as cheap as on both."""
    held = RNG.integers(low, high + 1, (6, 5)) * times
    held[:2] = np.array([[low], [high]]) * times
    if times > 1:
        held[2] = times  # so that nothing larger divides all
    scale = np.float32(0.03) if axis is None else np.linspace(0.01, 0.05, 5, dtype=np.float32)
    weight = (held * scale).astype(np.float32)
    view, file = lifted(model_from_text, weight, scale, axis)
    plan, (told,) = adopted_plan(view, file)
    (quant,) = plan.layers
    assert (quant.weight.bits, told.bits, told.moved) == (bits, bits, "")
    assert quant.runs == told.runs == "integers"
    np.testing.assert_allclose(codes.quantized(weight, quant.weight), weight, rtol=1e-6)
    assert len(quant.weight.scale) == (1 if axis is None else 5)
    assert quant.weight.symmetric == (bool(held.any()) and -low == high) or not held.any()


def test_codes_along_the_inputs_fit_no_kernel(model_from_text):
    """A step for every row of inputs x outputs cannot leave the sum."""
    held = RNG.integers(-127, 128, (6, 5))
    steps = np.linspace(0.01, 0.05, 6, dtype=np.float32)
    weight = (held * steps[:, None]).astype(np.float32)
    view, file = lifted(model_from_text, weight, steps, 0)
    plan, (told,) = adopted_plan(view, file)
    assert told.moved == "its grid in the file does not fit a kernel: a new grid spans it"
    assert np.abs(codes.quantized(weight, plan.layers[0].weight) - weight).max() < 0.03


def test_a_coarser_step_for_cpus_without_vnni(model_from_text):
    """Pairs of 127 and 127 saturate 16 bits there."""
    weight = np.full((6, 5), 127 * np.float32(0.02), np.float32)
    weight[0] = -weight[0] / 127
    view, file = lifted(model_from_text, weight, np.float32(0.02), None)
    told = [adopted_plan(view, file, target_cpu=cpu)[1][0].moved for cpu in ("vnni", "any")]
    assert told[0] == ""
    assert told[1].startswith("a coarser step, so that no sum overflows: ")


def quantized_by_hand(*, axis=None, zero=0, kind=np.int8, activation=True):
    """Q and DQ around a MatMul whose weight is stored as codes."""
    rng = np.random.default_rng(0)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    held = rng.integers(low, high + 1, (6, 5)).astype(kind)
    scale = np.float32(0.01) if axis is None else np.linspace(0.004, 0.02, held.shape[axis], dtype=np.float32)
    points = np.full(np.shape(scale), zero, kind)
    on, off = ("q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)", "d") if activation else ("", "x")
    name = {np.int8: "int8", np.uint8: "uint8", np.int16: "int16"}[kind]
    dims = "" if axis is None else f"[{held.shape[axis]}]"
    inputs = (
        f"float s, uint8 z, {name}[6,5] w, float{dims} t, {name}{dims} p"
        if activation
        else (f"{name}[6,5] w, float{dims} t, {name}{dims} p")
    )
    along = "" if axis is None else f"<axis={axis}>"
    text = f"""{HEAD.replace("8,", "10,", 1).replace("17", "21")}float[N,6] x) => (float[N,5] y) <{inputs}> {{
      {on}  v = DequantizeLinear{along}(w, t, p)  y = MatMul({off}, v) }}"""
    net = ir.to_proto(ir.from_onnx_text(text))
    arrays = {"w": held, "t": np.asarray(scale), "p": points}
    if activation:
        arrays |= {"s": np.array(0.05, np.float32), "z": np.array(100, np.uint8)}
    net.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    net.graph.node[-1].name = "layer"
    spread = scale if axis in (None, 1) else scale[:, None]
    return net, ((held.astype(np.float64) - zero) * spread).astype(np.float32)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(("kind", "zero"), [(np.int8, 0), (np.int8, 5), (np.uint8, 128), (np.int16, 0)])
def test_what_a_file_holds(kind, zero, axis):
    net, weight = quantized_by_hand(axis=axis, zero=zero, kind=kind)
    found = lift(load(net))
    assert {node.op_type for node in found.model.graph} == {"MatMul"}
    ((name, index), held), (activation,) = next(iter(found.weights.items())), found.activations.values()
    assert (name, index, found.dynamic) == ("layer", 1, frozenset())
    np.testing.assert_allclose(held.values, weight, rtol=1e-6)
    assert (held.grid.low, held.grid.high) == (np.iinfo(kind).min, np.iinfo(kind).max)
    assert held.grid.axis == axis
    assert set(held.grid.zero_point.ravel().tolist()) == {zero}
    assert activation.ends == pytest.approx((-5.0, 7.75))
    x = RNG.uniform(-5, 7.75, (8, 6)).astype(np.float32)
    rounded = (np.rint(x / np.float32(0.05))) * np.float32(0.05)
    want = Session(load(net).ir_model, optimize=False).run({"x": x})["y"]  # no kernel has steps along the inputs
    have = Session(found.model.ir_model).run({"x": rounded})["y"]
    np.testing.assert_allclose(have, want, atol=1e-3 * np.abs(want).max())


def test_weights_alone_and_nothing_at_all():
    net, weight = quantized_by_hand(activation=False)
    found = lift(load(net))
    assert not found.activations
    np.testing.assert_allclose(next(iter(found.weights.values())).values, weight, rtol=1e-6)
    plain = ir.from_onnx_text(f"{HEAD}float[N,4] x) => (float[N,4] y) {{ y = Relu(x) }}")
    with pytest.raises(ModelError, match="is not quantized: it has no grid to adopt"):
        lift(load(plain))


def half_in_floats():
    """Two convolutions on grids, and between them Exp, whose range does not follow from its operand's grid."""
    text = f"""{HEAD}float[N,2,4,4] x) => (float[N,2,4,4] y) <float s, uint8 z, int8[2,2,1,1] w, float t, int8 p> {{
      q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  v = DequantizeLinear(w, t, p)
      a = Conv(d, v)  e = Exp(a)  b = Conv(e, v)  k = QuantizeLinear(b, s, z)  y = DequantizeLinear(k, s, z) }}"""
    net = ir.to_proto(ir.from_onnx_text(text))
    held = {"s": np.array(0.05, np.float32), "z": np.array(100, np.uint8), "t": np.array(0.006, np.float32)}
    held |= {"w": RNG.integers(-127, 128, (2, 2, 1, 1)).astype(np.int8), "p": np.array(0, np.int8)}
    net.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    for node in net.graph.node:
        node.name = node.output[0]
    return load(net)


class Everything:
    """Samples that know every tensor."""

    def range_of(self, tensor):
        return -1.0, 3.0


@pytest.mark.parametrize("observed", [None, Everything()])
def test_layers_beside_an_unknown_range_run_in_floats(observed):
    net = half_in_floats()
    file = lift(net)
    view = GraphView(normalise(file.model))
    plan, told = adopted_plan(view, file, observed=observed)
    tensors = {grid.tensor for grid in plan.activations}
    if observed is None:
        assert "e" not in tensors
        assert {one.name: one.runs for one in told} == {"a": "floats", "b": "floats"}
    else:
        assert "e" in tensors
        assert {one.name: one.runs for one in told} == {"a": "integers", "b": "integers"}
    assert {quant.name: quant.runs for quant in plan.layers} == {one.name: one.runs for one in told}
    if observed is None:
        x = RNG.uniform(-4, 7, (3, 2, 4, 4)).astype(np.float32)
        want = Session(net.ir_model, optimize=False).run({"x": x})["y"]
        have = Session(simulate(normalise(file.model), plan)).run({"x": x})["y"]
        np.testing.assert_allclose(np.clip(have, -5.0, 7.75), want, atol=0.026)
