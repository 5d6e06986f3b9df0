"""A grid is shared along operators that move values only where nothing is lost by it."""

from __future__ import annotations

import numpy as np
import pytest

import qgraph
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session

HEAD = '<ir_version: 8, opset_import: ["": 17]> net ('


def sqnr(model, result, feeds):
    pairs = zip(*(Session(m).run_list(feeds) for m in (load(model).ir_model, result.model)), strict=True)
    return [float(10 * np.log10((w.astype(float) ** 2).sum() / ((w - h).astype(float) ** 2).sum())) for w, h in pairs]


def normal(rng, *shape):
    return rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)


def grids(result):
    return {grid.tensor for grid in result.plan.activations}


def test_what_a_slice_drops_is_not_spanned(model_from_text):
    rng = np.random.default_rng(0)
    text = (
        "float[N,9] x, int64[1] one, int64[1] nine, float[8,16] w, float[16,4] v) => (float[N,4] y) {"
        " f = Slice(x, one, nine, one) h = Gemm(f, w) r = Relu(h) y = Gemm(r, v) }"
    )
    ends = {"one": np.array([1]), "nine": np.array([9])}
    model = model_from_text(HEAD + text, w=normal(rng, 8, 16), v=normal(rng, 16, 4), **ends)
    x = rng.normal(size=(64, 9)).astype(np.float32)
    plain = qgraph.quantize(model, x, activations=8)
    assert grids(plain) == {"x", "r"}  # as wide: the codes are sliced
    x[:, 0] = rng.uniform(1e6, 2e6, 64)
    apart = qgraph.quantize(model, x, activations=8)
    assert grids(apart) == {"f", "r"}
    assert min(sqnr(model, apart, {"x": x})) > 30


@pytest.mark.parametrize("low", [-1e9, -3.4028235e38])
@pytest.mark.parametrize("relu", [True, False])
def test_padding_that_a_pool_drops_is_not_spanned(model_from_text, low, relu):
    rng = np.random.default_rng(1)
    text = (
        "float[N,4,8,8] x, float[4,4,3,3] w, int64[8] p, float low, float[4,4,1,1] v) => (float[N,4,4,4] y) {"
        f" c = Conv<pads=[1,1,1,1]>(x, w) r = {'Relu' if relu else 'Identity'}(c) q = Pad(r, p, low)"
        " z = MaxPool<kernel_shape=[3,3], strides=[2,2]>(q) y = Conv(z, v) }"
    )
    constants = {"p": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "low": np.array(low, np.float32)}
    model = model_from_text(HEAD + text, w=normal(rng, 4, 4, 3, 3), v=normal(rng, 4, 4, 1, 1), **constants)
    x = rng.normal(size=(32, 4, 8, 8)).astype(np.float32)
    assert min(sqnr(model, qgraph.quantize(model, x), {"x": x})) > 30


CUTS = {  # q is 32 channels, u the last 16
    "Slice": "q = Slice(s, a, b, ax) u = Slice(s, b, c, ax)",
    "Split": "q, u = Split<axis=1>(s, sizes)",
    "Slice and more": "i = Slice(s, a, b, ax) q = Identity(i) t = Slice(s, b, c, ax)"
    " k = Transpose<perm=[0,2,1]>(t) u = Transpose<perm=[0,2,1]>(k)",
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("producer", ["Conv", "MatMul"])
def test_parts_of_one_projection_have_grids_of_their_own(model_from_text, producer, cut):
    rng = np.random.default_rng(2)
    project = "s = Conv(x, w)" if producer == "Conv" else "m = MatMul(x, o) s = Transpose<perm=[0,2,1]>(m)"
    used = ("sizes",) if cut == "Split" else ("a", "b", "c", "ax")
    ends = {name: np.array([value]) for name, value in (("a", 0), ("b", 32), ("c", 48), ("ax", 1))}
    constants = {name: value for name, value in (ends | {"sizes": np.array([32, 16])}).items() if name in used}
    shapes = "".join(f", int64[{array.size}] {name}" for name, array in constants.items())
    text = (
        f"float[N,16,5] x, float[48,16,1] w, float[8,32,1] wq, float[8,16,1] wv{shapes}) => (float[N,8,5] y,"
        f" float[N,8,5] z) {{ {project} {CUTS[cut]} y = Conv(q, wq) z = Conv(u, wv) }}"
    )
    w = rng.normal(0, 0.25, (48, 16, 1)).astype(np.float32)
    w[32:] *= 0.02
    if producer == "MatMul":
        text = text.replace("float[48,16,1] w", "float[16,48] o").replace("float[N,16,5] x", "float[N,5,16] x")
        w = np.ascontiguousarray(w[:, :, 0].T)
    weights = {"w" if producer == "Conv" else "o": w, "wq": normal(rng, 8, 32, 1), "wv": normal(rng, 8, 16, 1)}
    model = model_from_text(HEAD + text, **weights, **constants)
    x = rng.normal(size=(32, 16, 5) if producer == "Conv" else (32, 5, 16)).astype(np.float32)
    assert min(sqnr(model, qgraph.quantize(model, x), {"x": x})) > 30


def test_what_resize_extrapolates_is_on_the_grid(model_from_text):
    rng = np.random.default_rng(3)
    text = (
        "float[1,4,8,8] x, float[4,4,3,3] w, float[8] roi, int64[4] size, float[4,4,1,1] v) => (float[1,4,16,16] y) {"
        ' c = Conv<pads=[1,1,1,1]>(x, w) z = Resize<mode="nearest", extrapolation_value=50.0,'
        ' coordinate_transformation_mode="tf_crop_and_resize">(c, roi, , size) y = Conv(z, v) }'
    )
    constants = {"roi": np.array([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32), "size": np.array([1, 4, 16, 16])}
    model = model_from_text(HEAD + text, w=normal(rng, 4, 4, 3, 3), v=normal(rng, 4, 4, 1, 1), **constants)
    x = rng.normal(size=(8, 4, 8, 8)).astype(np.float32)
    assert min(sqnr(model, qgraph.quantize(model, x), {"x": x[:1]})) > 30


@pytest.mark.parametrize(
    "how", ["dilations=[2,2]", "pads=[1,1,1,1], count_include_pad=1", "strides=[2,2], ceil_mode=1"]
)
def test_average_pools_of_all_kinds(model_from_text, how):
    text = (
        "float[N,4,13,13] x, float[8,4,3,3] w, float[4,8,1,1] v) => (float[N,4,h,k] y) {"
        f" c = Conv(x, w) r = Relu(c) z = AveragePool<kernel_shape=[3,3], {how}>(r) y = Conv(z, v) }}"
    )
    rng = np.random.default_rng(4)
    head = HEAD.replace("17", "19").replace("ir_version: 8", "ir_version: 9")
    model = model_from_text(head + text, w=normal(rng, 8, 4, 3, 3), v=normal(rng, 4, 8, 1, 1))
    x = (rng.normal(size=(16, 4, 13, 13)) + 1).astype(np.float32)
    assert min(sqnr(model, qgraph.quantize(model, x), {"x": x})) > 25


@pytest.mark.parametrize("left_at", [0.0, 0.25])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_what_never_changes_is_read_in_floats(model_from_text, left_at, op):
    rng = np.random.default_rng(5)
    shape, weight = ("N,8,1", (8, 8, 1)) if op == "Conv" else ("N,8", (8, 8))
    dims = ",".join(map(str, weight))
    text = (
        f"float[{shape}] x, float[{shape}] z, float[{dims}] w, float[{dims}] u) => (float[{shape}] y) {{"
        f" h = {op}(x, w) g = {op}(z, u) y = Add(h, g) }}"
    )
    model = model_from_text(HEAD + text, w=normal(rng, *weight), u=normal(rng, *weight))
    x = rng.normal(size=(64, *weight[1:])).astype(np.float32)
    with pytest.warns(UserWarning, match="input 'z' is"):
        result = qgraph.quantize(model, {"x": x, "z": np.full_like(x, left_at)})
    assert "z" not in grids(result)
    assert min(sqnr(model, result, {"x": x, "z": x[::-1].copy()})) > 30
    assert any(f"'z' is {left_at:g} in all samples" in kept.why for kept in result.plan.kept_float)
