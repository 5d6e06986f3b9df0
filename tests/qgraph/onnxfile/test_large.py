"""Models whose weights stay in their file: quantized one tensor at a time, and written beside the output."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from benchmarks.large import write_chain
from qgraph.errors import ModelError
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
    [data] = tmp_path.glob("large.onnx.*.data")
    assert size == (tmp_path / "large.onnx").stat().st_size + data.stat().st_size
    onnx.checker.check_model(str(tmp_path / "large.onnx"), full_check=True)
    monkeypatch.undo()
    small = qgraph.quantize(in_memory, **how)
    assert large.plan == small.plan
    small.save(tmp_path / "small.onnx")
    assert not list(tmp_path.glob("small.onnx.*"))
    np.testing.assert_array_equal(outputs(tmp_path / "large.onnx"), outputs(tmp_path / "small.onnx"))


def test_one_layer_in_memory_at_a_time(tmp_path, monkeypatch):
    width = 1024
    layer = 4 * width**2
    write_chain(tmp_path / "model.onnx", layers=6, width=width)

    def quantized(method, bits, group):
        options = {"method": method, "activations": None, "weights": bits, "group": group}
        return qgraph.quantize(tmp_path / "model.onnx", **options)

    requests = (("minmax", 8, "none"), ("minmax", 4, None), ("aciq", 4, None))
    for request in requests:  # compiles and imports
        quantized(*request)
    monkeypatch.setattr(runtime, "PROTOBUF_LIMIT", layer)
    monkeypatch.setattr(weights, "_BLOCK", 2**13)
    tracemalloc.start()
    try:
        for method, bits, group in requests:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result = quantized(method, bits, group)
            result.save(tmp_path / "out.onnx")
            kept, peak = tracemalloc.get_traced_memory()
            assert peak - kept < 1.3 * layer
            assert kept - before < (2 if method == "aciq" else 0.2) * layer, "the plan: steps of groups, of all layers"
    finally:
        tracemalloc.stop()


def test_a_plan_applied_gives_the_same_bytes(chain, tmp_path):
    result = qgraph.quantize(chain, method="minmax", activations=None, weights=5)
    for name, model in (("a", result.model), ("b", qgraph.apply(chain, result.plan))):
        qgraph.save(model, tmp_path / f"{name}.onnx")
    [a], [b] = (list(tmp_path.glob(f"{name}.onnx.*.data")) for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert a.name[1:] == b.name[1:]
    assert result.plan.model == normalise(load(chain)).digest


@pytest.fixture
def results(chain):
    return [qgraph.quantize(chain, method="minmax", activations=None, weights=bits) for bits in (8, 4)]


def data_files(folder):
    return sorted(path.name for path in folder.glob("*.data"))


def test_writing_again_replaces_the_weights(results, in_memory, tmp_path, monkeypatch):
    out, others = tmp_path / "out.onnx", ["other.onnx.0123456789ab.data", "out.onnx.data", "out.onnx.data.data"]
    for name in others:
        (tmp_path / name).write_bytes(b"weights of another model")
    seen = []
    for result in (*results, results[1]):
        result.save(out)
        seen.append(*set(data_files(tmp_path)).difference(others))
        assert len(data_files(tmp_path)) == 4
    assert seen[0] != seen[1] == seen[2]
    monkeypatch.undo()
    qgraph.save(load(in_memory), out)  # in one file
    assert data_files(tmp_path) == others


def test_cut_off_between_weights_and_model(results, tmp_path, monkeypatch):
    """Before every file that takes its place, the model computes what it did."""
    out, replace, taken = tmp_path / "out.onnx", os.replace, []
    results[0].save(out)
    before = outputs(out)

    def cut_off(source, target):
        if os.path.dirname(target) == str(tmp_path) and target not in taken:
            taken.append(target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    while out not in taken:
        with pytest.raises(KeyboardInterrupt):
            results[1].save(out)
        np.testing.assert_array_equal(outputs(out), before)
    results[1].save(out)
    assert len(data_files(tmp_path)) == 1
    assert not np.array_equal(outputs(out), before)


def test_weights_that_are_still_read_stay(chain, tmp_path):
    """A model that is written over the file it was read from keeps its values."""
    out = tmp_path / "out.onnx"
    qgraph.save(load(chain), out)
    wanted, model = outputs(out), load(out)
    model.graph.initializers["w0"].const_value = ir.tensor(np.zeros((WIDTH, WIDTH), np.float32), name="w0")
    qgraph.save(model, out)
    assert len(data_files(tmp_path)) == 2
    assert not np.array_equal(outputs(out), wanted)


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
