"""One file, the same codes in Python, on processors without VNNI, in Node and in WebAssembly.

Node and WebAssembly are tested where $QGRAPH_NODE_PACKAGES names a folder with `npm install --ignore-scripts
onnxruntime-node onnxruntime-web`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import qgraph
from benchmarks.portable import older_cpu, run, runtimes, with_codes
from benchmarks.saturating import codes_by_emulation, saturating_sums
from qgraph.onnxfile.load import load
from qgraph.running.cpu import cpu_flags
from tests.conftest import DEMO

RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The demo's network, portable, and 64 of its images."""
    folder = tmp_path_factory.mktemp("portable")
    data = DEMO / "digits_calibration.npz"
    qgraph.quantize(DEMO / "digits.onnx", data, portable=True, measure=False).save(folder / "digits.onnx")
    net = qgraph.open_data(DEMO / "digits_test.npz", load(DEMO / "digits.onnx"), limit=64)
    np.concatenate([next(iter(b.feeds.values())) for b in net.batches(64)]).tofile(folder / "x.f32")
    return folder / "digits.onnx", folder / "x.f32"


@pytest.fixture(scope="module")
def here(file):
    _, command, environment = next(runtimes(None, file[0].parent))
    return run(command, environment, with_codes(file[0]), file[1], (1, 8, 8))


def packages() -> Path:
    """The folder of Node's packages; skips where it or Node is missing."""
    folder = os.environ.get("QGRAPH_NODE_PACKAGES")
    if shutil.which("node") is None:
        pytest.skip("needs Node (node is not on the path)")
    if not folder:
        pytest.skip("needs onnxruntime-node and onnxruntime-web in a folder that $QGRAPH_NODE_PACKAGES names")
    return Path(folder)


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_codes_are_the_same_in_javascript(package, file, here):
    folder = packages()
    found = {name: rest for name, *rest in runtimes(folder, file[0].parent)}
    if package not in found:
        pytest.skip(f"{folder}/node_modules has no {package}")
    assert run(*found[package], with_codes(file[0]), file[1], (1, 8, 8))["outputs"] == here["outputs"]


@pytest.mark.parametrize("kind", ["avx2", "sse"])
def test_codes_are_the_same_on_older_processors(kind, file, here, tmp_path):
    shim = older_cpu(tmp_path)
    if shim is None:
        pytest.skip("needs a C compiler, Linux on x86-64, and a processor that lets CPUID fault")
    _, command, _ = next(runtimes(None, tmp_path))
    environment = {"LD_PRELOAD": str(shim), "OLDER_CPU": kind}
    assert run(command, environment, with_codes(file[0]), file[1], (1, 8, 8))["outputs"] == here["outputs"]


def saturating_model(path):
    """A product of ones at full size: it saturates on AVX2 without VNNI, and nowhere else."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x) => (float[N,16] y)
        <float s = {0.01}, uint8 z = {0}, float t = {1.0}, int8 p = {0}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear(w, t, p)
          m = MatMul(d, e) r = QuantizeLinear(m, big, z) y = DequantizeLinear(r, big, z) }"""
    model = onnx.parser.parse_model(text)
    for name, value in (("w", np.full((64, 16), 127, np.int8)), ("big", np.float32(255 * 127 * 64 * 0.01 / 250))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, path)


def test_the_older_processor_does_saturate(tmp_path):
    """Otherwise nothing would be shown by codes that are the same on it."""
    shim = older_cpu(tmp_path)
    if shim is None:
        pytest.skip("needs a C compiler, Linux on x86-64, and a processor that lets CPUID fault")
    saturating_model(tmp_path / "full.onnx")
    np.full((2, 64), 2.55, np.float32).tofile(tmp_path / "x.f32")
    _, command, _ = next(runtimes(None, tmp_path))
    both = [
        run(command, environment, tmp_path / "full.onnx", tmp_path / "x.f32", (64,))["outputs"]
        for environment in ({"LD_PRELOAD": str(shim), "OLDER_CPU": "avx2"}, {})
    ]
    vnni = cpu_flags() & {"avx512_vnni", "avx_vnni"}
    assert (both[0] != both[1]) == bool(vnni)  # without VNNI here, both saturate


def test_the_emulation_gives_the_codes_of_every_layer(file):
    equal, layers = codes_by_emulation(file[0], np.fromfile(file[1], np.float32), 8)
    assert layers >= 6
    assert equal == layers


def test_emulated_pairs_saturate():
    x, w = np.full((1, 4), 255, np.uint8), np.array([[127, 127, -128, -128], [127, -127, 64, 64]], np.int8)
    assert saturating_sums(x, w).tolist() == [[32767 - 32768, 255 * 128]]
    x, w = RNG.integers(0, 256, (5, 9)).astype(np.uint8), RNG.integers(-64, 65, (3, 9)).astype(np.int8)
    np.testing.assert_array_equal(saturating_sums(x, w), x.astype(int) @ w.T.astype(int))
