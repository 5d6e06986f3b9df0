"""Streaming statistics of a whole network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from qgraph.errors import DataError, ModelError
from qgraph.graph.sites import GraphView
from qgraph.observe import statistics
from qgraph.observe.statistics import Observations, _sources, observe, watched_tensors
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def net(digits):
    return normalise(load(digits))


@pytest.fixture(scope="module")
def images(digits_calibration):
    return np.load(digits_calibration)["images"][:48]


def test_statistics_are_those_of_the_tensors(net, images):
    observed = observe(net, open_data(images, net))
    data = open_data(images, net)
    (batch,) = data.batches(48)
    names = [n for n in watched_tensors(GraphView(net)) if n != "input"]
    values = {**Session(net.ir_model, outputs=names).run(batch.feeds), **batch.feeds}
    for name, axis in watched_tensors(GraphView(net)).items():
        have, value = observed[name], values[name].astype(np.float64)
        np.testing.assert_allclose([have.min, have.max], [value.min(), value.max()], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(have.mean, value.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(have.variance, value.var(), rtol=1e-5, atol=1e-6)
        assert have.histogram.total == value.size
        if axis is not None:
            others = tuple(i for i in range(value.ndim) if i != axis)
            np.testing.assert_allclose(have.channels.mean, value.mean(others), rtol=1e-4, atol=1e-5)


def test_a_cluster_observes_the_same(net, images, cluster):
    here, there = (observe(net, open_data(images, net), threads=2, executor=where) for where in ("local", cluster))
    assert {name: s.to_dict() for name, s in there.tensors.items()} == {n: s.to_dict() for n, s in here.tensors.items()}


def test_order_and_batching_of_samples_do_not_matter(net, images):
    order = RNG.permutation(len(images))
    whole = observe(net, open_data(images, net))
    parts = observe(net, open_data([images[order][:7], images[order][7:8], images[order][8:]], net))
    for name in whole.tensors:
        a, b = whole[name], parts[name]
        assert (a.count, a.histogram.total) == (b.count, b.histogram.total)
        np.testing.assert_allclose([a.min, a.max, a.mean, a.variance], [b.min, b.max, b.mean, b.variance], rtol=1e-6)
        moved = np.abs(a.histogram.counts - b.histogram.counts).sum()
        assert moved <= 1e-3 * a.histogram.total  # the float network itself rounds differently in another batch
    assert whole["input"] == parts["input"]  # what is fed is the same to the last bit


def test_save_and_load_are_exact(net, images, tmp_path):
    observed = observe(net, open_data(images, net))
    observed.save(tmp_path / "c.npz")
    again = Observations.load(tmp_path / "c.npz")
    assert again == observed
    again.check_model(net)


def test_statistics_of_another_model_are_refused(net, images, tmp_path):
    observed = Observations(model="0" * 64, count=1, tensors={})
    with pytest.raises(DataError, match="made for another model"):
        observed.check_model(net)
    with pytest.raises(DataError, match="no statistics of 'x'"):
        observed["x"]


def test_invalid_activations_name_the_tensor():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> {
      l = Log(x)
      y = MatMul(l, w)
    }"""
    net = normalise(load(onnx.parser.parse_model(text)))
    with pytest.raises(ModelError, match="invalid values for 'l'"):
        observe(net, open_data(-np.ones((3, 2), np.float32), net))


def test_a_fixed_batch_counts_every_sample_once():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[4,2] x) => (float[4,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"""
    net = normalise(load(onnx.parser.parse_model(text)))
    observed = observe(net, open_data(np.float32([[1, 1]] * 5 + [[100, 1]]), net))
    assert observed["x"].count == 12
    np.testing.assert_allclose(observed["x"].mean, (5 * 2 + 101) / 12)


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_observing_takes_less_than_a_gibibyte(shared, count):
    """Peak memory of the whole process while it observes test images on a network of 32 layers.

    It is read from Linux: `getrusage` starts with the peak of the process that runs the tests.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc/self/status, which tells the peak memory of this process alone")
    script = f"""
from qgraph.samples.dataset import open_data
from qgraph.samples.preprocessing import Preprocessing
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.observe.statistics import observe
net = normalise(load({str(shared / "models" / "cifar10_resnet32.onnx")!r}))
data = open_data({str(shared / "data" / "cifar10_test.npz")!r}, net, limit={count})
assert observe(net, data)["input"].count == {count} * 3 * 32 * 32
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 1024, f"{done.stdout} MiB"


def test_what_transpose_moved_is_observed_where_it_came_from(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 4] x) => (float[N, 4, 2] y) <float[3, 2] w> {
      a = Relu(x)
      t = Transpose<perm = [0, 2, 1]>(a)
      y = MatMul(t, w)
    }
    """
    net = normalise(load(model_from_text(text, w=RNG.normal(size=(3, 2)).astype(np.float32))))
    x = RNG.normal(size=(20, 3, 4)).astype(np.float32)
    assert set(_sources(net, watched_tensors(GraphView(net))).values()) == {("a", 1)}
    observed = observe(net, open_data(x, net))
    (layer,) = GraphView(net).layers
    seen = np.maximum(x, 0).astype(np.float64)
    np.testing.assert_allclose(observed.operand(layer).channels.mean, seen.mean(axis=(0, 2)), rtol=1e-6)
    assert observed["a"] == observed["t"]
    assert observed["a"].max == seen.max()


def test_batches_fit_what_samples_really_take(model_from_text, monkeypatch):
    """The model leaves all sizes open; the first sample tells them."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, C] x) => (float[N, 2] y) <float[8, 2] w> { h = Relu(x) y = MatMul(h, w) }
    """
    net = normalise(load(model_from_text(text, w=np.ones((8, 2), np.float32))))
    data = open_data(RNG.normal(size=(9, 8)).astype(np.float32), net)
    sizes = []
    monkeypatch.setattr(
        Session, "run", lambda self, feeds, run=Session.run: sizes.append(len(feeds["x"])) or run(self, feeds)
    )
    monkeypatch.setattr(
        statistics, "RUN_BYTES", 2 * 4 * (2 * 8 * 4)
    )  # two samples of x and h for each of 3 + 1 threads
    observe(net, data, threads=3)
    assert sorted(sizes) == [1, 2, 2, 2, 2]
