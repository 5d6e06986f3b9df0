"""Messages that no other test asks for, each produced by what it is about: the words are those of docs/errors.md."""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import qgraph
from qgraph.cli import main
from qgraph.errors import DataError, ExecutorError, ModelError, PlanError, QGraphError, StoreError, UsageError
from qgraph.gradient import GradientError, gradients
from qgraph.graph.layers import Layer
from qgraph.graph.sites import GraphView
from qgraph.graph.tensors import root
from qgraph.jobs.search import search
from qgraph.jobs.sensitivity import measure_sensitivity
from qgraph.lowering.simulate import simulate
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.objective import choose_scorer
from qgraph.methods.zeroq.distill import distill
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import raise_opset
from qgraph.plan import codes as weights
from qgraph.plan.plan import ActivationQuant, QuantPlan, Rounding, WeightQuant
from qgraph.plan.request import choose_recipe
from qgraph.running.executor import _Dask, open_executor
from qgraph.running.store import FILE, hold, open_store
from qgraph.samples.dataset import Dataset, Preprocessing, open_data

PLAN = {"model": "0" * 64, "recipe": "aciq"}
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def graph(text):
    return onnx.parser.parse_model(f"{HEAD} g {text}")


def matmul(**tensor):
    """x W with a weight that says what a test wants it to say."""
    made = TensorProto(name="w", dims=[4, 4], data_type=TensorProto.FLOAT)
    if "external" not in tensor:
        made.raw_data = tensor.pop("raw_data", bytes(64))
    for key, value in tensor.pop("external", {}).items():
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key=key, value=str(value))
    made.MergeFrom(TensorProto(**tensor))
    if "dims" in tensor:
        made.dims[:] = tensor["dims"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4])] for n in "xy")
    made = helper.make_graph([node], "g", inputs, outputs, [made])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Models


@pytest.mark.parametrize(
    ("words", "tensor"),
    [
        ("the file is damaged", {"raw_data": bytes(60)}),
        ("impossible shape", {"dims": [-1, 4]}),
        ("has the unknown type", {"data_type": 99}),
        ("which holds no numbers", {"data_type": TensorProto.UNDEFINED}),
        ("a ModelProto has no folder", {"external": {"location": "w.bin"}}),
    ],
)
def test_weights_of_a_model(words, tensor):
    with pytest.raises(ModelError, match=words):
        load(matmul(**tensor))


@pytest.mark.parametrize(
    ("words", "external"),
    [
        ("only files beside the model", {"location": "../w.bin"}),
        ("not a regular file there", {"location": "missing.bin"}),
        ("are needed, and the file has", {"location": "w.bin", "offset": 32}),
        ("an offset or length that is not a number", {"location": "w.bin", "offset": "here"}),
    ],
)
def test_external_data(tmp_path, words, external):
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (tmp_path / "m.onnx").write_bytes(matmul(external=external).SerializeToString())
    with pytest.raises(ModelError, match=words):
        load(tmp_path / "m.onnx")


def test_a_weight_beyond_memory(tmp_path):
    dims = [2**20, 2**21]
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(8 * 2**40)  # without a byte on disk
    (tmp_path / "m.onnx").write_bytes(matmul(external={"location": "w.bin"}, dims=dims).SerializeToString())
    with pytest.raises(ModelError, match="it alone takes 8,796,093,022,208 bytes"):
        load(tmp_path / "m.onnx")


def test_attributes_that_no_operator_takes():
    text = "(float[N, 3, 8, 8] x, float[3, 3, 3, 3] w) => (float[N, 3, H, W] y) { y = Conv<strides = [0, 1]>(x, w) }"
    with pytest.raises(ModelError, match="outside of 1"):
        load(graph(text))


def fail(*_, **__):
    raise OSError("gone")


@pytest.mark.parametrize(
    ("words", "broken"),
    [
        ("cannot be checked", "onnx.checker.check_model"),
        ("cannot be read as an ONNX graph", "onnx_ir.from_proto"),
        ("cannot read its external data", "onnx_ir.external_data.load_to_model"),
        ("is not a valid ONNX graph", "onnx_ir.passes.common.TopologicalSortPass.call"),
        ("cannot read", "onnx.load"),
    ],
)
def test_files_that_vanish_while_they_are_read(tmp_path, monkeypatch, words, broken):
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (tmp_path / "m.onnx").write_bytes(matmul(external={"location": "w.bin"}).SerializeToString())
    monkeypatch.setattr(broken, fail)
    with pytest.raises(ModelError, match=words):
        normalise(load(tmp_path / "m.onnx"))


def test_opsets_that_cannot_be_raised(monkeypatch, tmp_path):
    old = onnx.parser.parse_model(f"{HEAD.replace('17', '11')} g (float[N, 4] x) => (float[N, 4] y) {{ y = Relu(x) }}")
    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    with pytest.raises(ModelError, match="onnx's version converter"):
        raise_opset(normalise(load(old)))


def test_what_onnxruntime_refuses(digits):
    unknown = graph("(float[N, 4] x) => (float[N, 4] y) { y = local.Nothing(x) }")
    unknown.opset_import.add(domain="local", version=1)
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        qgraph.evaluate(unknown, {"x": np.zeros((2, 4), np.float32)}, against=unknown)
    reshape = graph("(float[N, 4] x) => (float[3, 4] y) <int64[2] s = {3, 4}> { y = Reshape(x, s) }")
    with pytest.raises(ModelError, match="onnxruntime cannot run"):
        qgraph.evaluate(reshape, {"x": np.zeros((2, 4), np.float32)}, against=reshape)
    whole = graph("(float[N, 4] x) => (int64[N, 1] y) { y = ArgMax<axis = 1>(x) }")
    with pytest.raises(ModelError, match="has no floating-point output"):
        measure_sensitivity(with_layer(whole), {"x": np.eye(2, 4, dtype=np.float32)})


def with_layer(model):
    """A layer before the first node."""
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    model.graph.node[0].input[0] = "h"
    model.graph.node.insert(0, helper.make_node("MatMul", ["x", "w"], ["h"], name="layer"))
    return model


def test_a_type_that_changes(monkeypatch, digits):
    monkeypatch.setattr("qgraph.assess.verify.first_run", lambda *_: (1, None, [np.zeros((1, 10), np.float64)]))
    data = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)
    with pytest.raises(ModelError, match="of the quantized model is float64, not float32"):
        qgraph.quantize(digits, data, method="minmax", measure=False)


def test_an_operator_without_its_input():
    node = ir.node("Reshape", [None, ir.Value(name="shape")])
    with pytest.raises(ModelError, match="an operator lacks an input"):
        root(node.outputs[0])


# Data

DIGITS = np.zeros((2, 1, 8, 8), np.float32)


@pytest.fixture
def net(digits):
    return normalise(load(digits))


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ("data must be a path", 5),
        ("some batches have labels", [{"input": DIGITS, "labels": [0, 1]}, DIGITS]),
    ],
)
def test_data_of_another_kind(net, words, data):
    with pytest.raises(DataError, match=words):
        open_data(data, net)


def test_files_of_another_kind(net, tmp_path):
    (tmp_path / "a.npy").write_text("text")
    with pytest.raises(DataError, match=re.escape("as .npz or .npy")):
        open_data(tmp_path / "a.npy", net)
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 junk")
    with pytest.raises(DataError, match=re.escape("it is not a valid .npz archive")):
        open_data(tmp_path / "b.npz", net)
    two = graph("(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Add(x, z) }")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="feeds one input"):
        open_data(tmp_path / "images", normalise(load(two)))


def test_samples_that_do_not_fit_together(net):
    whole = graph("(int64[N] x) => (int64[N] y) { y = Identity(x) }")
    with pytest.raises(DataError, match="values, but the data are"):
        next(open_data({"x": np.zeros(3, np.float32)}, normalise(load(whole))).batches(1))
    with pytest.raises(DataError, match="values, but the images have"):
        next(open_data(np.zeros((2, 8, 8, 1), np.uint8), net, preprocessing=Preprocessing(mean=(1, 2, 3))).batches(1))
    free = graph("(float[N, A] x) => (float[N, A] y) { y = Identity(x) }")
    sizes = [np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)]
    with pytest.raises(DataError, match="cannot form a batch"):
        open_data(sizes, normalise(load(free))).take([0, 1])
    run = {"x": np.zeros((2, 3), np.float32), "h": np.zeros((3, 1), np.float32)}
    two = normalise(load(graph("(float[2, 3] x, float[3, 1] h) => (float[2, 1] y) { y = MatMul(x, h) }")))
    with pytest.raises(DataError, match="cannot be drawn sample by sample"):
        Dataset(description="one run", parts=[run], inputs=tuple(two.input_values())).take([0])


def test_statistics_of_other_channels(net, monkeypatch):
    observed = observe(net, open_data(DIGITS, net))
    layer = GraphView(net).layers[1]
    monkeypatch.setattr(Layer, "input_channels", 99)
    with pytest.raises(DataError, match="in batches of the size"):
        observed.operand(layer)


def test_what_cannot_be_distilled_or_trained(digits):
    with pytest.raises(UsageError, match="at least one sample to distil, not 0"):
        distill(digits, count=0)
    tokens = with_layer(graph("(int64[N, 4] x) => (float[N, 4] y) { y = Relu(h) }"))
    with pytest.raises(QGraphError, match="only float inputs can be distilled"):
        distill(cast_first(tokens))
    free = graph("(float[N, 4, H] x) => (float[N, 4, H] y) { y = Relu(x) }")
    with pytest.raises(DataError, match=re.escape("is not fixed; give it with shapes={'x': (32, 4, N)}")):
        distill(free)
    whole = with_layer(graph("(float[N, 4] x) => (int64[N, 1] y) { y = ArgMax<axis = 1>(h) }"))
    data = np.random.default_rng(0).random((400, 4), np.float32)
    with pytest.raises(DataError, match="has no output of type float32"):
        qgraph.finetune(whole, data)
    fixed = with_layer(graph("(float[5, 4] x) => (float[5, 4] y) { y = Relu(h) }"))
    with pytest.raises(DataError, match="cannot be split into shards"):
        qgraph.finetune(fixed, data, config=LsqPlusConfig(epochs=1, batch=32))


def cast_first(model):
    model.graph.node[0].input[0] = "f"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT))
    return model


# Requests


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("unknown option", {"bitz": 4}),
        ("must be a positive number", {"size_mb": -1.0}),
        (", not both", {"size_mb": 1.0, "average_bits": 4.0}),
        ("has no integer kernel", {"weights": None, "activations": 8}),
        ("is for codes of activations", {"portable": True, "activations": None}),
        ("symmetric=False is for grids that are not trained", {"method": "lsqplus", "symmetric": False}),
        ("correct_outputs is for plans that are not trained", {"method": "lsqplus", "correct_outputs": True}),
    ],
)
def test_recipes(words, options):
    with pytest.raises(UsageError, match=words):
        choose_recipe(options.pop("method", "minmax"), True, **options)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("must be below 1", {"holdout": 1.0}),
        ("must not be negative", {"weight_decay": -1.0}),
        ("must be 1, 2, 3 or 4", {"configuration": 5}),
        ("must be at least 1", {"epochs": 0}),
        ("must be positive", {"rate": 0.0}),
        ("must lie in", {"warmup": 2.0}),
        ("choose one of", {"optimiser": "magic"}),
    ],
)
def test_settings_of_a_training(words, settings):
    with pytest.raises(UsageError, match=words):
        LsqPlusConfig(**settings)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("unknown search 'magic': choose", {"search": "magic"}),
        ("at least one ingredient", {"ingredients": ()}),
        ("shares of the largest value", {"clips": (2.0,)}),
        ("need 0.5 <", {"confidence": 0.4}),
        ("the tolerance is a share", {"tolerance": -1.0}),
        ("need first >=", {"first": 1}),
    ],
)
def test_settings_of_a_search(words, settings):
    with pytest.raises(UsageError, match=words):
        SearchConfig(**settings)


def test_requests_that_do_not_fit_together(digits, digits_calibration, tmp_path):
    with pytest.raises(UsageError, match="fine-tuning chooses no bits"):
        qgraph.finetune(digits, weights="mixed")
    with pytest.raises(UsageError, match="max_drop measures accuracy: pass data with labels"):
        qgraph.quantize(digits, np.zeros((4, 1, 8, 8), np.float32), max_drop=1.0)
    known = tmp_path / "statistics.npz"
    qgraph.quantize(digits, digits_calibration, limit=8, method="minmax", guard="off", measure=False, calibration=known)
    with pytest.raises(UsageError, match="a calibration file is not enough"):
        qgraph.quantize(digits, calibration=known, method="aciq", correct_outputs=True)
    with pytest.raises(UsageError, match="cannot be reached"):
        qgraph.quantize(digits, digits_calibration, limit=8, weights="mixed", size_mb=1e-4)
    with pytest.raises(UsageError, match="the paper's protocol has"):
        search(digits, digits_calibration, limit=8, protocol="paper", weights="mixed")
    with pytest.raises(UsageError, match="matches no layer"):
        qgraph.quantize(digits, method="minmax", activations=None, keep=("zzz",))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--ablation takes one float model", "compare M M --ablation aciq --data D"),
        ("belong to --ablation", "compare M M --data D --weights 4"),
        ("is one of the inputs", "report M P -o P"),
        ("at least one plan or quantized model", "report M -o R"),
        ("goes with --protocol paper", "search M --data D -o P --first-layer-bits 4"),
        ("cannot make the folder", "demo -o M"),
    ],
)
def test_command_lines(digits, digits_calibration, tmp_path, capsys, words, line):
    places = {"M": str(digits), "D": str(digits_calibration), "P": str(tmp_path / "plan.json")}
    (tmp_path / "plan.json").write_text("{}")
    assert main([places.get(word, word) for word in line.split()]) in (1, 2)
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_shell_without_completion(monkeypatch, capsys):
    monkeypatch.setattr("qgraph.cli.completion.get_completion_class", lambda shell: None)
    assert main(["completion", "fish"]) == 2
    assert "no completion for fish" in capsys.readouterr().err


# Plans

WEIGHT = {"bits": 4, "scale": (0.5,)}
ACTIVATION = {"tensor": "t", "bits": 4, "scale": 0.5}
FIRST_ORDER = Rounding(gamma_n=0.1)


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        ("every scale must be positive", {"scale": (0.0,)}),
        ("a weight grid with", {"scale": (0.5, 0.5)}),
        ("a weight grid with", {"rounding": FIRST_ORDER, "symmetric": False}),
        ("a weight grid with", {"rounding": FIRST_ORDER, "channel_bits": (4,)}),
        ("a symmetric weight grid has zero_point 0", {"zero_point": (1,)}),
        ("channel_bits need as many scales", {"channel_bits": (4, 4)}),
        ("zero points of a weight", {"zero_point": (99,), "symmetric": False}),
    ],
)
def test_weight_grids(words, grid):
    with pytest.raises(PlanError, match=words):
        WeightQuant(**(WEIGHT | grid))


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        ("as many of both expected", {"channel_bits": (4,), "channel_scale": (1.0, 1.0)}),
        ("a grid with channel_scale", {"channel_scale": (1.0,), "offset": 1.0}),
        ("a grid with a rounding", {"rounding": FIRST_ORDER, "zero_point": 3}),
        ("a grid with a rounding", {"rounding": FIRST_ORDER, "offset": 1.0}),
        ("a symmetric grid of", {"symmetric": True}),
        ("a subdivision fits 8 bits", {"rounding": Rounding(gamma_n=0.1, subdivision=99)}),
        ("lies outside 0", {"zero_point": 16}),
        ("must be finite", {"offset": float("inf")}),
    ],
)
def test_activation_grids(words, grid):
    with pytest.raises(PlanError, match=words):
        ActivationQuant(**(ACTIVATION | grid))


@pytest.mark.parametrize("wrong", [{"gamma_n": 2}, {"gamma_n": 0, "gamma_s": 2}, {"gamma_n": 0, "subdivision": -1}])
def test_roundings(wrong):
    with pytest.raises(PlanError, match="of a rounding must"):
        Rounding(**wrong)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("this version reads schema", {"schema": 3}),
        ("must be an object", {"layers": [1]}),
        ("must be a list", {"layers": 1}),
        ("must be of type", {"recipe": 1}),
        ("has an unknown field", {"layer": []}),
        ("more than once", {"activations": [{"tensor": "t", "bits": 8, "scale": 1.0}] * 2}),
    ],
)
def test_plan_files(words, changes):
    with pytest.raises(PlanError, match=words):
        QuantPlan.from_json(json.dumps(PLAN | changes))


def test_plans_that_a_model_cannot_carry(digits):
    result = qgraph.quantize(digits, np.random.default_rng(0).random((8, 1, 8, 8), np.float32), method="minmax")
    first, layer = result.plan.activations[0], result.plan.layers[0]

    def apply(**changes):
        return qgraph.apply(digits, dataclasses.replace(result.plan, **changes))

    with pytest.raises(PlanError, match="which the model does not have"):
        apply(activations=(dataclasses.replace(first, tensor="nowhere"),))
    factors = dataclasses.replace(layer.weight, input_scale=(2.0,))
    with pytest.raises(PlanError, match="is not its weight's input_scale"):
        apply(layers=(dataclasses.replace(layer, weight=factors),))
    with pytest.raises(PlanError, match="can carry the channel_scale"):
        apply(layers=(), activations=(dataclasses.replace(first, channel_scale=(2.0,)),))
    with pytest.raises(PlanError, match="do not fit a weight of shape"):
        weights.codes(np.zeros((4, 3), np.float32), WeightQuant(**WEIGHT, input_scale=(1.0, 1.0)))


def test_a_grid_per_channel_of_an_unknown_rank():
    net = normalise(load(with_layer(graph("(float[N, 4] x) => (float[4] y) { y = ReduceSum<keepdims = 0>(h) }"))))
    net.graph.inputs[0].shape = None
    grid = ActivationQuant(tensor="x", bits=8, scale=1.0, channel_scale=(1.0,) * 4)
    with pytest.raises(PlanError, match="needs a tensor of known rank"):
        simulate(net, QuantPlan(model=net.digest, recipe="minmax", activations=(grid,)))


# Searches and clusters


def test_checkpoints(tmp_path):
    with open_store(tmp_path, "stage", model="a"):
        pass
    with pytest.raises(StoreError, match="belongs to another job"), open_store(tmp_path, "stage", model="b"):
        pass
    with open_store(tmp_path, "stage", model="a") as store:
        pass
    with pytest.raises(StoreError, match="cannot write the checkpoints"):
        store.put("piece", 1)
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    with pytest.raises(StoreError, match="has schema 99, this version of qgraph reads schema"), hold(tmp_path):
        pass


def test_objectives():
    scores = np.zeros((4, 1), np.float32)
    with pytest.raises(DataError, match="needs an output with one score per class"):
        choose_scorer("kl", [[scores + 1]], None)
    with pytest.raises(DataError, match="no objective to measure"):
        choose_scorer("mse", [[scores]], None)
    with pytest.raises(DataError, match="computes NaN or infinite values for its output"):
        choose_scorer("mse", [[scores * np.nan]], None)


class Completed:
    """Futures, of which the first to be completed has an error."""

    def __init__(self, error):
        self.error = error

    def add(self, future):
        pass

    def __iter__(self):
        raise self.error


class Client:
    """A cluster whose tasks all end in one way."""

    loop = None

    def __init__(self, error):
        self.error = error

    def submit(self, *_, **__):
        return "future"

    def cancel(self, *_, **__):
        pass


def test_clusters(monkeypatch):
    distributed = pytest.importorskip("distributed", reason='needs the extra: pip install ".[dask]"')
    lost = distributed.KilledWorker("task", distributed.scheduler.WorkerState, 3)
    for words, error in (("lost its worker", lost), ("lacks a module", ModuleNotFoundError("qgraph"))):
        monkeypatch.setattr(distributed, "as_completed", lambda loop, error=error: Completed(error))
        with pytest.raises(ExecutorError, match=words):
            list(_Dask(client=Client(error)).run(len, (), [1]))
    monkeypatch.setattr("qgraph.running.executor._CONNECT_SECONDS", 0.5)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", processes=False) as cluster:
        where = f"dask:{cluster.scheduler_address}"
        with pytest.raises(ExecutorError, match="has no workers"), open_executor(where):
            pass
    with pytest.raises(UsageError, match="unknown executor"), open_executor("magic"):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="needs the extra dask"), open_executor("dask:tcp://127.0.0.1:1"):
        pass


# Gradients


@pytest.mark.parametrize(
    ("words", "body", "wrt"),
    [
        ("has no gradient rule", "z = Asinh(x)", "x"),
        ("has no rule", 'z = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, roi, s)', "x"),
        ("computed at run time; make", "z = ReduceSum(x, axes)", "x"),
        ("no tensor to differentiate for", "z = Relu(x)", ""),
        ("only float tensors have gradients", "z = Relu(x)", "axes"),
        ("its kernel size is not known", "z = Conv(x, k)", "x"),
        ("needs static spatial sizes", 'z = Conv<strides = [2, 2], auto_pad = "SAME_UPPER">(x, fixed)', "x"),
        ("secondary outputs carry", "n, z = LayerNormalization(x, row)", "x"),
        ("is missing", "z = Max(x, , x)", "x"),
        ("the rank of", "q = Reshape(x, axes) r = Relu(q) z = Expand(r, axes)", "x"),
    ],
)
def test_gradients(words, body, wrt):
    inputs = "float[1, 2, H, W] x, float[2, 2, K, K] k, float[2, 2, 3, 3] fixed, float[W] row, float[8] roi, float[4] s"
    inner = "float[1, 2, A, B] z"
    text = f"({inputs}, int64[Q] axes) => (float l) <{inner}> {{ {body} l = ReduceSum<keepdims = 0>(z) }}"
    with pytest.raises(GradientError, match=words):
        gradients(graph(text), "l", [wrt] if wrt else [], builder="portable")


def test_a_loss_that_is_no_number():
    with pytest.raises(GradientError, match="must be a single number"):
        gradients(graph("(float[2] x) => (float[2] y) { y = Relu(x) }"), "y", ["x"])


def test_the_training_builder(monkeypatch):
    from qgraph.gradient import training

    model = graph("(float[2] x) => (float loss) { loss = ReduceSum<keepdims = 0>(x) }")
    monkeypatch.setattr(training, "_builder", lambda: None)
    with pytest.raises(GradientError, match="needs onnxruntime-training"):
        gradients(model, "loss", ["x"], builder="training")

    class Builder:
        def __init__(self, *_):
            raise RuntimeError("no")

    monkeypatch.setattr(training, "_builder", lambda: Builder)
    model = graph("(float[2] x) => (float loss) { y = Relu(x) loss = ReduceSum<keepdims = 0>(y) }")
    with pytest.raises(GradientError, match="is neither: choose builder"):
        gradients(model, "loss", ["y"], builder="training")
    with pytest.raises(GradientError, match="cannot differentiate the model"):
        gradients(model, "loss", ["x"], builder="training")
