"""Models whose weights stay in their file: quantized one tensor at a time, and written beside the output."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest

import qgraph
from benchmarks.large import write_chain
from qgraph.errors import ModelError, UsageError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.running import sessions as runtime

WIDTH, LAYERS = 96, 5
LAYER = 4 * WIDTH**2  # bytes


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """A model that is too large, where one file holds three of its layers."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_chain(folder / "model.onnx", layers=LAYERS, width=WIDTH)
    monkeypatch.setattr(runtime, "PROTOBUF_LIMIT", 3 * LAYER)
    return folder / "model.onnx"


@pytest.fixture
def in_memory(chain):
    return onnx.load(chain)


def outputs(model):
    x = np.random.default_rng(0).standard_normal((4, WIDTH), np.float32)
    return runtime.Session(model).run_list({"x": x})[0]


@pytest.mark.parametrize(
    "options",
    [
        {"weights": 8},
        {"weights": 4},
        {"weights": 4, "method": "aciq"},
        {"weights": 3, "allocate_bits": "weights", "method": "aciq"},
        {"weights": 8, "format": "float"},
    ],
    ids=str,
)
def test_the_same_codes_as_in_memory(chain, in_memory, tmp_path, options, monkeypatch):
    how = {"method": "minmax", "activations": None} | options
    large = qgraph.quantize(chain, **how)
    size = large.save(tmp_path / "large.onnx")
    data = tmp_path / "large.onnx.data"
    assert size == (tmp_path / "large.onnx").stat().st_size + data.stat().st_size
    onnx.checker.check_model(str(tmp_path / "large.onnx"), full_check=True)
    monkeypatch.undo()
    small = qgraph.quantize(in_memory, **how)
    assert large.plan == small.plan
    small.save(tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx.data").exists()
    np.testing.assert_array_equal(outputs(tmp_path / "large.onnx"), outputs(tmp_path / "small.onnx"))


def test_one_layer_in_memory_at_a_time(tmp_path, monkeypatch):
    width = 1024
    layer = 4 * width**2
    write_chain(tmp_path / "model.onnx", layers=6, width=width)
    qgraph.quantize(tmp_path / "model.onnx", method="aciq", activations=None, weights=4)  # compiles and imports
    monkeypatch.setattr(runtime, "PROTOBUF_LIMIT", layer)
    monkeypatch.setattr(weights, "_BLOCK", 2**13)
    tracemalloc.start()
    try:
        for method, bits in (("minmax", 8), ("minmax", 4), ("aciq", 4)):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result = qgraph.quantize(tmp_path / "model.onnx", method=method, activations=None, weights=bits)
            result.save(tmp_path / "out.onnx")
            assert tracemalloc.get_traced_memory()[1] - before < 1.3 * layer
    finally:
        tracemalloc.stop()


def test_a_plan_applied_gives_the_same_bytes(chain, tmp_path):
    result = qgraph.quantize(chain, method="minmax", activations=None, weights=5)
    for name, model in (("a", result.model), ("b", qgraph.apply(chain, result.plan))):
        qgraph.save(model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    assert result.plan.model == normalise(load(chain)).digest


def test_data_of_another_model_are_not_overwritten(chain, tmp_path):
    result = qgraph.quantize(chain, method="minmax", activations=None)
    other = tmp_path / "out.onnx.data"
    other.write_bytes(b"weights of another model")
    with pytest.raises(UsageError, match="holds the weights of another model"):
        result.save(tmp_path / "out.onnx")
    assert other.read_bytes() == b"weights of another model"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.onnx.data"]


def test_the_graph_is_checked_without_its_weights(chain):
    """onnxruntime loads it with an input for every weight, and refuses what it has no kernel for."""
    result = qgraph.quantize(chain, method="minmax", activations=None)
    graph = runtime.without_weights(result.model)
    assert len(graph.graph.inputs) == 1 + LAYERS
    assert runtime.Session(graph).output_names == ["y"]
    graph.graph[0].op_type = "Nonsense"
    with pytest.raises(ModelError, match="Nonsense"):
        runtime.Session(graph)


def test_samples_run_through_it(chain, tmp_path):
    x = np.random.default_rng(0).standard_normal((16, WIDTH), np.float32)
    result = qgraph.quantize(chain, data={"x": x}, method="minmax")
    result.save(tmp_path / "out.onnx")
    wanted = outputs(chain)
    error = outputs(tmp_path / "out.onnx") - wanted
    assert 10 * np.log10((wanted**2).mean() / (error**2).mean()) > 25
