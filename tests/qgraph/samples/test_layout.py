"""Where samples lie: states whose batch is another axis, numbers for all samples, batches of one, open sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.errors import DataError, UsageError
from qgraph.onnxfile.load import load
from qgraph.samples.dataset import open_data
from qgraph.samples.layout import batch_axes, check_axes, place, shaped

RNG = np.random.default_rng(0)
X, STATES = RNG.normal(size=(24, 16)).astype(np.float32), RNG.normal(size=(24, 2, 8)).astype(np.float32)
FORMS = {
    "samples first": {"x": X, "state": STATES},
    "as the graph": {"x": X[:, None], "state": STATES[:, :, None]},
    "along axis 1": {"x": X, "state": STATES.transpose(1, 0, 2)},
}


def recurrent(build, batch="1"):
    return build(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{batch}, 16] x, float[2, {batch}, 8] state, int64 rate,
          float[24, 8] w, float[8, 4] v, int64 i, int64[1] a)
          => (float[{batch}, 4] y, float[2, {batch}, 8] next) {{
          s = Gather <axis = 0> (state, i)
          z = Concat <axis = 1> (x, s)
          m = MatMul(z, w)
          t = Tanh(m)
          u = Unsqueeze(t, a)
          r = Cast <to = 1> (rate)
          p = Mul(u, r)
          next = Concat <axis = 0> (u, p)
          y = MatMul(t, v)
        }}""",
        w=RNG.normal(0, 0.2, (24, 8)).astype(np.float32),
        v=RNG.normal(0, 0.2, (8, 4)).astype(np.float32),
        i=np.array(0),
        a=np.array([0]),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", ["1", "n"])
def test_states(model_from_text, form, batch):
    net = load(recurrent(model_from_text, batch))
    data = open_data(FORMS[form] | {"rate": np.array(2)}, net)
    assert (data.count, data.layouts) == (24, {"x": 0, "state": 1, "rate": None})
    batches = list(data.batches(8))
    size = 1 if batch == "1" else 8
    assert len(batches) == 24 // size
    for start, taken in zip(range(0, 24, size), batches, strict=True):
        assert np.array_equal(taken.feeds["x"], X[start : start + size])
        assert np.array_equal(taken.feeds["state"], STATES[start : start + size].transpose(1, 0, 2))
        assert taken.feeds["rate"].shape == ()


@pytest.mark.parametrize("batch", ["1", "n"])
def test_states_quantize(model_from_text, batch):
    result = qgraph.quantize(recurrent(model_from_text, batch), FORMS["along axis 1"] | {"rate": np.array(2)})
    assert result.observed.count >= 20


def test_axes_that_are_said(model_from_text):
    net = load(recurrent(model_from_text, "n"))
    square = {"x": X[:2], "state": STATES[:2].transpose(1, 0, 2), "rate": np.array(2)}
    assert open_data(square, net, batch_axes={"state": 1}).layouts["state"] == 1
    for axes, words in (({"other": 1}, "the model has no such input"), ({"state": 3}, "has axes 0 to 2")):
        with pytest.raises(UsageError, match=words):
            check_axes(axes, net.input_values())


def test_samples_that_differ_in_a_number_for_all(model_from_text):
    net = load(recurrent(model_from_text, "n"))
    data = {"x": X, "state": STATES, "rate": np.arange(24)}
    assert [b.feeds["rate"] for b in open_data(data, net, batch=1).batches(8)] == list(range(24))
    with pytest.raises(DataError, match="takes one value for a whole batch"):
        place(np.arange(3), None, "rate")


def one_inside(build):
    return build(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4, 4, 4] x, float[8, 4, 3, 3] w, int64[2] s, float[32, 4] v) => (float[n, 4] y) {
          c = Conv(x, w)
          r = Relu(c)
          f = Reshape(r, s)
          y = Gemm(f, v)
        }""",
        w=RNG.normal(0, 0.3, (8, 4, 3, 3)).astype(np.float32),
        v=RNG.normal(0, 0.3, (32, 4)).astype(np.float32),
        s=np.array([1, 32]),
    )


def test_a_batch_of_one_inside(model_from_text):
    data = RNG.normal(size=(16, 4, 4, 4)).astype(np.float32)
    net = one_inside(model_from_text)
    with pytest.warns(UserWarning, match="takes one sample at a time"):
        found = qgraph.quantize(net, data)
    said = qgraph.quantize(net, data, batch=1)
    assert found.plan.activations == said.plan.activations


def test_open_sizes(model_from_text):
    net = load(one_inside(model_from_text))
    assert shaped(net.input_values(), {"x": (1, 4, 4, 4)}, {})[0].shape == ir.Shape([None, 4, 4, 4])
    with pytest.raises(UsageError, match="does not fit the input's shape"):
        shaped(net.input_values(), {"x": (1, 3, 4, 4)}, {})
    with pytest.raises(UsageError, match="the model has no such input"):
        shaped(net.input_values(), {"y": (1, 3, 4, 4)}, {})


def test_the_batch_stays_open_along_its_axis(model_from_text):
    net = load(recurrent(model_from_text, "n"))
    state = next(v for v in shaped(net.input_values(), {"state": (2, 1, 8)}, {}) if v.name == "state")
    assert list(state.shape) == [2, None, 8]


def test_batch_axes_without_data(model_from_text):
    for batch, axes in (("n", {"x": 0, "state": 1, "rate": None}), ("1", {"x": 0, "state": 1, "rate": None})):
        net = load(recurrent(model_from_text, batch))
        assert batch_axes(net.input_values(), {}) == axes
    assert batch_axes(net.input_values(), {"state": 2})["state"] == 2
    steps = [ir.Value(name=n, shape=ir.Shape(s)) for n, s in (("x", [5, 1, 8]), ("h", [1, 1, 4]), ("k", [7, 3]))]
    assert batch_axes(steps, {}) == {"x": 1, "h": 0, "k": None}


def test_strings_are_samples(tmp_path):
    """Categories go in as strings, through a file as well; numbers in their place are refused."""
    encode = helper.make_node(
        *("LabelEncoder", ["kind"], ["i"]), domain="ai.onnx.ml", keys_strings=["a", "b", "c"], values_int64s=[0, 1, 2]
    )
    weights = {"e": RNG.normal(size=(3, 16)), "w": RNG.normal(size=(16, 8))}
    graph = helper.make_graph(
        [encode, helper.make_node("Gather", ["e", "i"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("kind", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    kinds = np.array(["a", "b", "c", "b"] * 8)
    np.savez(tmp_path / "kinds.npz", kind=kinds)
    for data in (tmp_path / "kinds.npz", {"kind": kinds}, {"kind": kinds.astype(object)}):
        assert qgraph.quantize(model, data, activations=8).quality.worst.sqnr_db > 25
    with pytest.raises(DataError, match="input 'kind' needs strings, but the data are of type int64"):
        qgraph.quantize(model, {"kind": np.arange(8)})
    assert qgraph.quantize(model, activations=None).quality.basis == "noise"


def test_sequences_are_no_samples(model_from_text):
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 16]))
    graph = helper.make_graph(
        [helper.make_node("SequenceAt", ["x", "i"], ["e"]), helper.make_node("MatMul", ["e", "w"], ["y"])],
        "g",
        [helper.make_value_info("x", kind)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [
            numpy_helper.from_array(RNG.normal(size=(16, 8)).astype(np.float32), "w"),
            numpy_helper.from_array(np.array(0), "i"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(
        DataError, match=r"input 'x' is a seq\(tensor\(float\)\), and samples are tensors.*activations=None"
    ):
        qgraph.quantize(model, {"x": X})
    assert qgraph.quantize(model, activations=None, measure=False).layers


def turned(build):
    return load(
        build(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[16, n] x, float[4, 16] w) => (float[4, n] y) { y = MatMul(w, x) }""",
            w=RNG.normal(size=(4, 16)).astype(np.float32),
        )
    )


@pytest.mark.parametrize("axes", [None, {"x": 1}], ids=str)
@pytest.mark.parametrize("form", ["mapping", "npz", "npy", "batches"])
def test_limit_along_another_axis(model_from_text, tmp_path, form, axes):
    """Ten of forty samples, and nothing of the sixteen values of each is cut."""
    net, x = turned(model_from_text), RNG.normal(size=(16, 40)).astype(np.float32)
    source = {"x": x}
    if form == "npz":
        source = tmp_path / "x.npz"
        np.savez(source, x=x)
    elif form == "npy":
        source = tmp_path / "x.npy"
        np.save(source, x)
    elif form == "batches":
        source = iter(np.split(x, 20, axis=1))
    data = open_data(source, net, limit=10, batch_axes=axes)
    assert data.count == 10
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in data.batches(4)], axis=1), x[:, :10])


def test_limit_of_arrays_without_a_batch(model_from_text, tmp_path):
    """A vector is the input of one run, and is not cut."""
    net = load(
        model_from_text(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[16] x, float[16] w) => (float y) { y = MatMul(w, x) }""",
            w=np.ones(16, np.float32),
        )
    )
    x = RNG.normal(size=16).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    for source, count in (({"x": x}, 1), (tmp_path / "x.npz", 1), (iter([x, x, x]), 2), (np.stack([x, x, x]), 2)):
        data = open_data(source, net, limit=2)
        assert [np.array_equal(b.feeds["x"], x) for b in data.batches()] == [True] * count
        assert data.count == count
