"""`--batch`, `--shape` and `--batch-axis`, as a person types them, with data and without."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgraph.cli import main
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session

pytestmark = pytest.mark.filterwarnings("always::UserWarning")  # shown, as on the command line

RNG = np.random.default_rng(0)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.err

    return call


def save(nodes, inputs, outputs, opset=17, **constants):
    def infos(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 10 else 8),
        "m.onnx",
    )


def normal(*shape, size=0.3):
    return RNG.normal(0, size, shape).astype(np.float32)


def statistics(channels):
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return {"gamma": ones, "beta": zeros, "mean": zeros, "var": ones}


N = helper.make_node
NORM = N("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"])


def one_inside(size=1, opened=True):
    """A Reshape inside fixes the batch size, which may be open on the outside."""
    nodes = [N("Conv", ["x", "w"], ["c"]), NORM, N("Reshape", ["n", "s"], ["f"]), N("Gemm", ["f", "v"], ["y"])]
    constants = {"w": normal(8, 4, 3, 3), "v": normal(32, 4), "s": np.array([size, 32])} | statistics(8)
    batch = "n" if opened else size
    save(nodes, {"x": [batch, 4, 4, 4]}, {"y": [batch, 4]}, **constants)
    return {"x": normal(16, 4, 4, 4, size=1)}


@pytest.mark.parametrize("given", [True, False], ids=["data", "distilled"])
def test_batch(run, given):
    np.savez("d.npz", **one_inside())
    command = ["quantize", "m.onnx", "-o", "q.onnx", *(["--data", "d.npz"] if given else [])]
    assert run(*command, "--batch", 1) == (0, "")
    assert Session("q.onnx").run({"x": normal(1, 4, 4, 4)})["y"].shape == (1, 4)
    status, warned = run(*command)
    assert (status, "--batch 1" in warned) == (0, True)


@pytest.mark.parametrize("fixed", [None, 4], ids=["one inside", "four"])
@pytest.mark.parametrize("command", ["finetune", "search"])
def test_jobs_keep_to_the_batch_of_the_model(run, command, fixed):
    np.savez("d.npz", **one_inside(fixed or 1, opened=fixed is None))
    options = {"finetune": ["--epochs", 1, "--batch", 4], "search": ["--weights", 4, "--activations", "none"]}[command]
    output = "q.onnx" if command == "finetune" else "plan.json"
    status, said = run(command, "m.onnx", "-o", output, "--data", "d.npz", *options)
    assert (status, "--batch 1" in said) == (0, fixed is None), said


def any_size(opset=17):
    """A convolution for images of all sizes of which 8 is a divisor; others do not run."""
    nodes = [
        *[N("Conv", ["x", "w"], ["c"], pads=[1] * 4), NORM],
        *[N("MaxPool", ["n"], ["p"], kernel_shape=[8, 8], strides=[8, 8])],
        *[
            N("Upsample", ["p"], ["u"], scales=[1.0, 1.0, 8.0, 8.0])
            if opset < 9
            else N("Resize", ["p", "", "k"], ["u"])
        ],
        *[N("Add", ["u", "n"], ["a"]), N("Conv", ["a", "v"], ["y"])],
    ]
    scales = {} if opset < 9 else {"k": np.array([1, 1, 8, 8], np.float32)}
    constants = {"w": normal(8, 3, 3, 3), "v": normal(4, 8, 1, 1)} | statistics(8) | scales
    save(nodes, {"x": ["n", 3, "h", "w"]}, {"y": ["n", 4, "h", "w"]}, opset=opset, **constants)


def test_shape_in_distillation(run):
    any_size()
    status, said = run("quantize", "m.onnx", "-o", "q.onnx")
    assert (status, "--shape x=32,3,N,N (a number for every N), or give --data" in said) == (1, True)
    assert run("quantize", "m.onnx", "-o", "q.onnx", "--shape", "x=1,3,40,24") == (0, "")
    assert run("distill", "m.onnx", "-o", "d.npz", "--count", 6, "--steps", 2, "--shape", "x=1,3,40,24") == (0, "")
    assert np.load("d.npz")["x"].shape == (6, 3, 40, 24)
    assert [d.dim_param for d in onnx.load("q.onnx").graph.input[0].type.tensor_type.shape.dim] == ["n", "", "h", "w"]


def test_shape_in_the_check_after_raising_the_opset(run, monkeypatch):
    monkeypatch.setattr("qgraph.onnxfile.opset.TRIED_SIZES", (3,))  # of which none fits
    any_size(opset=8)
    command = ["quantize", "m.onnx", "-o", "q.onnx", "--activations", "none"]
    status, warned = run(*command)
    assert (status, "was raised from opset 8 to 13 unchecked" in warned) == (0, True)
    assert run(*command, "--shape", "x=1,3,24,16") == (0, "")


def test_a_shape_that_does_not_fit(run):
    any_size()
    for shape, words in (("x=1,4,8,8", "does not fit the input's shape"), ("z=1,3,8,8", "the model has no such input")):
        status, said = run("quantize", "m.onnx", "-o", "q.onnx", "--activations", "none", "--shape", shape)
        assert (status, words in said) == (2, True)
    assert run("quantize", "m.onnx", "-o", "q.onnx", "--shape", "x=1,3,big")[0] == 2


def recurrent(batch):
    """A step with a state of two parts, whose batch is axis 1; the samples could be told apart along any axis."""
    nodes = [
        N("Gather", ["state", "i"], ["s"], axis=0),
        N("Concat", ["x", "s"], ["z"], axis=1),
        *[N("MatMul", ["z", "w"], ["c"]), NORM, N("Tanh", ["n"], ["t"]), N("Unsqueeze", ["t", "a"], ["u"])],
        *[N("Concat", ["u", "u"], ["next"], axis=0), N("MatMul", ["t", "v"], ["y"])],
    ]
    constants = {"w": normal(24, 8), "v": normal(8, 4), "i": np.array(0), "a": np.array([0])} | statistics(8)
    state = [2 if batch == "n" else None, batch, 8]
    save(nodes, {"x": [batch, 16], "state": state}, {"y": [batch, 4], "next": [2, batch, 8]}, **constants)


def test_batch_axis_with_data(run):
    recurrent("n")
    both = {"x": normal(2, 16, size=1), "state": normal(2, 2, 8, size=1)}
    np.savez("d.npz", **both)
    command = ["quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--no-measure"]
    assert run(*command, "--batch-axis", "state=1") == (0, "")
    for axis, words in (("state=3", "has axes 0 to 2"), ("other=1", "the model has no such input")):
        status, said = run(*command, "--batch-axis", axis)
        assert (status, words in said) == (2, True)
    assert run(*command, "--batch-axis", "state")[0] == 2


@pytest.mark.parametrize("command", ["quantize", "finetune", "distill"])
@pytest.mark.parametrize(("batch", "said"), [("n", []), (1, ["--shape", "state=2,1,8", "--batch-axis", "state=1"])])
def test_states_are_distilled_along_their_batch(run, command, batch, said):
    """The batch of a state is found where its axis is the only open one, and said where it is not."""
    recurrent(batch)
    options = {"quantize": [], "finetune": ["--epochs", 1, "--batch", 8, "--limit", 16], "distill": ["--steps", 2]}
    output = "d.npz" if command == "distill" else "q.onnx"
    status, told = run(command, "m.onnx", "-o", output, *options[command], *said)
    assert status == 0, told
    if command == "distill":
        found = np.load("d.npz")
        assert (found["x"].shape, found["state"].shape) == ((64, 16), (2, 64, 8))
        assert np.ptp(found["state"], axis=1).min() > 0, "samples differ"
    else:
        size = 5 if batch == "n" else 1
        feeds = {"x": normal(size, 16, size=1), "state": normal(2, size, 8, size=1)}
        want, have = (Session(load(path).ir_model).run(feeds)["y"] for path in ("m.onnx", "q.onnx"))
        assert want.shape == have.shape
