"""Where grids go: every reader gets the grid that the plan says, and nothing is rounded twice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qgraph.graph.sites import GraphView
from qgraph.lowering.export import export
from qgraph.lowering.places import put_in_place
from qgraph.lowering.simulate import FloatEmitter, simulate
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.grids import weight_grid
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan
from qgraph.plan.staircase import on_grid
from qgraph.running.sessions import Session

RNG = np.random.default_rng(23)
HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('
X = RNG.normal(size=(5, 6)).astype(np.float32)


def network(model_from_text, text, **weights):
    return normalise(load(model_from_text(HEAD + text, **weights)))


def planned(net, *grids, bits=8):
    """All layers of the network on grids so fine that only activations are rounded."""
    layers = tuple(
        LayerQuant(name=one.name, op=one.op, weight=weight_grid(-1.0, 1.0, bits=bits, symmetric=True))
        for one in GraphView(net).layers
    )
    return QuantPlan(model=net.digest, recipe="test", layers=layers, activations=grids)


def grid(tensor, bits=3, scale=0.5, **fields):
    return ActivationQuant(tensor=tensor, bits=bits, scale=scale, zero_point=2 ** (bits - 1), **fields)


def eye(rows=6, columns=6):
    return np.eye(rows, columns, dtype=np.float32)


BRANCHES = """float[N,6] x, int64[2] shape, float[6,6] u, float[6,6] v) => (float[N,6] y, float[N,6] z, float[N,6] n) {
  f = Reshape(x, shape)  y = MatMul(f, u)  z = MatMul(x, v)  n = Neg(x) }"""


@pytest.mark.parametrize("lower", [simulate, export])
def test_what_is_moved_to_a_grid_of_its_own_is_rounded_once(model_from_text, lower):
    """0.74 is 0.8 in steps of 0.4, and 1.2 in steps of 0.4 after steps of 1."""
    net = network(model_from_text, BRANCHES, shape=np.array([-1, 6]), u=eye(), v=eye())
    coarse, fine = grid("x", scale=1.0), grid("f", bits=5, scale=0.4)
    found = Session(lower(net, planned(net, coarse, fine))).run({"x": X})
    assert not np.allclose(on_grid(on_grid(X, coarse), fine), on_grid(X, fine))
    weight = np.float32(np.rint(127.0) / 127)
    np.testing.assert_allclose(found["y"], on_grid(X, fine) * weight, atol=1e-5)
    np.testing.assert_allclose(found["z"], on_grid(X, coarse) * weight, atol=1e-5)
    np.testing.assert_allclose(found["n"], -on_grid(X, coarse), atol=1e-6)


CHAIN = """float[N,6] x, int64[2] shape, int64[3] wide, float[6,6] u) => (float[N,6] y, float[N,1,6] k) {
  f = Reshape(x, wide)  g = Reshape(f, shape)  y = MatMul(g, u)  k = Neg(f) }"""


def test_a_mover_that_others_read_as_well_is_on_the_first_grid(model_from_text):
    net = network(model_from_text, CHAIN, shape=np.array([-1, 6]), wide=np.array([-1, 1, 6]), u=eye())
    coarse, fine = grid("x", scale=1.0), grid("g", bits=5, scale=0.4)
    for lower in (simulate, export):
        found = Session(lower(net, planned(net, coarse, fine))).run({"x": X})
        np.testing.assert_allclose(found["k"], -on_grid(X, coarse)[:, None], atol=1e-6)
        np.testing.assert_allclose(found["y"], on_grid(on_grid(X, coarse), fine), atol=1e-5)


OPERANDS = """float[N,6] x, int64[2] shape, float[6,6] u, float[6,6] v) => (float[N,6] y, float[N,6] z, float[N,6] n) {
  f = Reshape(x, shape)  y = MatMul(f, u)  z = MatMul(x, v)  n = Neg(x) }"""


@pytest.mark.parametrize("lower", [simulate, export])
def test_layers_alone_read_the_grid_of_an_operand(model_from_text, lower):
    net = network(model_from_text, OPERANDS, shape=np.array([-1, 6]), u=eye(), v=eye())
    stored, read = grid("x", bits=8, scale=0.02), grid("x", bits=2, scale=1.0, role="operand")
    found = Session(lower(net, planned(net, stored, read))).run({"x": X})
    rounded = on_grid(on_grid(X, stored), read)
    np.testing.assert_allclose(found["y"], rounded, atol=1e-5)
    np.testing.assert_allclose(found["z"], rounded, atol=1e-5)
    np.testing.assert_allclose(found["n"], -on_grid(X, stored), atol=1e-6)


def test_an_output_on_a_grid_keeps_its_name_and_an_input_stays(model_from_text):
    text = "float[N,6] x, float[6,6] u) => (float[N,6] y, float[N,6] x) { y = MatMul(x, u) }"
    net = network(model_from_text, text, u=eye())
    for lower in (simulate, export):
        made = lower(net, planned(net, grid("x"), grid("y", bits=4, scale=0.3)))
        assert [v.name for v in made.graph.outputs] == ["y", "x"]
        found = Session(made).run({"x": X})
        np.testing.assert_array_equal(found["x"], X)
        once = on_grid(X, grid("x"))
        np.testing.assert_allclose(found["y"], on_grid(once, grid("y", bits=4, scale=0.3)), atol=1e-5)


def test_an_emitter_that_forgets_its_input_is_caught(model_from_text):
    class Forgetful(FloatEmitter):
        def activation(self, value: ir.Value, quant: ActivationQuant) -> ir.Value:
            return self.op("Relu", self._scalar(1.0))

    net = network(model_from_text, "float[N,6] x, float[6,6] u) => (float[N,6] y) { y = MatMul(x, u) }", u=eye())
    with pytest.raises(ValueError, match="must compute its result from the value it was given"):
        put_in_place(net, planned(net, grid("x")), Forgetful)


POOLS = """float[1,2,9,9] x, float[2,2,1,1] u) => (float[1,2,h,v] y, float[1,2,h,v] z) {
  c = Conv(x, u)  r = Relu(c)
  y = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(r)  z = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(x) }"""


def test_dilated_pools_read_floats(model_from_text):
    """Of a quantized tensor, and of one that is not: onnxruntime has no such integer kernel."""
    model = model_from_text(HEAD.replace("17", "19").replace("8,", "9,", 1) + POOLS, u=eye(2, 2).reshape(2, 2, 1, 1))
    net = normalise(load(model))
    plan = planned(net, ActivationQuant(tensor="r", bits=8, scale=0.02))
    x = RNG.normal(size=(1, 2, 9, 9)).astype(np.float32)
    want, have = (Session(lower(net, plan)).run({"x": x}) for lower in (simulate, export))
    for name in ("y", "z"):
        np.testing.assert_allclose(have[name], want[name], atol=1e-4)
    pooled = [n.inputs[0].producer() for n in export(net, plan).graph if n.op_type == "AveragePool"]
    assert {None if node is None else node.op_type for node in pooled} == {None, "Mul"}
