"""Weight gradients of convolutions outside of the graph: equal to the graph's, to differences, on any thread count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest
from gradient_cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st

from qgraph.gradient import (
    Backward,
    Correlation,
    GradientError,
    deferred_gradients,
    gradient_name,
    gradients,
    weight_gradients,
)
from qgraph.gradient.contraction_kernels import eight_rows, four_rows
from qgraph.running.sessions import Session

CONVOLUTIONS = [case for case in CASES if case.op == "Conv"]


def _correlated(x: np.ndarray, g: np.ndarray, c: Correlation) -> np.ndarray:
    """The definition, one tap and group at a time."""
    channels, (_, outputs, rows, columns) = x.shape[1], g.shape
    inner, outer = channels // c.group, outputs // c.group
    room = [
        b + k * d + s * n
        for b, k, d, s, n in zip(c.begin, c.kernel, c.dilations, c.strides, (rows, columns), strict=True)
    ]
    wide = np.pad(x, [(0, 0), (0, 0), (c.begin[0], room[0]), (c.begin[1], room[1])])
    found = np.zeros((outputs, inner, *c.kernel))
    for i, j in np.ndindex(c.kernel):
        top, left = i * c.dilations[0], j * c.dilations[1]
        seen = wide[:, :, top :: c.strides[0], left :: c.strides[1]][:, :, :rows, :columns]
        for k in range(c.group):
            mine, theirs = g[:, k * outer : (k + 1) * outer], seen[:, k * inner : (k + 1) * inner]
            found[k * outer : (k + 1) * outer, :, i, j] = np.einsum("nohw,nchw->oc", mine, theirs)
    return found


def _pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 9),
    group=st.sampled_from([1, 1, 2, 5]),
    inner=st.integers(1, 5),
    outer=st.integers(1, 19),
    result=_pairs(1, 12),
    kernel=_pairs(1, 4),
    strides=_pairs(1, 3),
    dilations=_pairs(1, 2),
    begin=_pairs(0, 3),
    rest=_pairs(-3, 2),
    kind=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_every_geometry_agrees_with_the_definition(
    images, group, inner, outer, result, kernel, strides, dilations, begin, rest, kind, seed
):
    c = Correlation(kernel=kernel, strides=strides, dilations=dilations, begin=begin, group=group)
    reach = [(k - 1) * d + 1 + s * (n - 1) for k, d, s, n in zip(kernel, dilations, strides, result, strict=True)]
    height, width = (max(r - b + e, 1) for r, b, e in zip(reach, begin, rest, strict=True))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, group * inner, height, width)).astype(kind)
    g = rng.normal(size=(images, group * outer, *result)).astype(kind)
    (found,) = weight_gradients([(x, g, c)])
    tolerance = 1e-10 if kind is np.float64 else 2e-5 * np.sqrt(images * result[0] * result[1])
    np.testing.assert_allclose(found, _correlated(x, g, c), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("x", "g", "c"),
    [
        ((3, 16, 33, 31), (3, 24, 33, 31), Correlation(kernel=(3, 3), begin=(1, 1))),
        ((2, 5, 40, 50), (2, 16, 40, 50), Correlation(kernel=(1, 1))),  # read where it lies
        ((2, 6, 40, 50), (2, 32, 40, 50), Correlation(kernel=(1, 1), group=2)),
        ((40, 3, 7, 7), (40, 9, 7, 7), Correlation(kernel=(1, 1))),
        ((21, 40, 9, 9), (21, 40, 5, 5), Correlation(kernel=(3, 3), strides=(2, 2), begin=(1, 1), group=40)),
        ((1, 2, 150, 130), (1, 11, 75, 65), Correlation(kernel=(7, 7), strides=(2, 2), begin=(3, 3))),
        ((2, 300, 6, 6), (2, 700, 6, 6), Correlation(kernel=(3, 3), begin=(1, 1))),  # partial sums too large to split
    ],
    ids=str,
)
def test_large_shapes_agree_on_any_number_of_threads(x, g, c):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=x).astype(np.float32), rng.normal(size=g).astype(np.float32)
    expected = _correlated(x, g, c)
    (alone,) = weight_gradients([(x, g, c)])
    with ThreadPoolExecutor(2) as pool:
        (together,) = weight_gradients([(x, g, c)], pool=pool, threads=3)
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kernel", [four_rows, eight_rows])
def test_tiles_for_few_and_many_registers_are_products(kernel):
    """A processor uses one of them."""
    rows, rng = {four_rows: 4, eight_rows: 8}[kernel], np.random.default_rng(3)
    g, x = rng.normal(size=(rows, 40)), rng.normal(size=200)
    out = np.ones((rows, 3))
    kernel(g.ravel(), 40, 32, x, 0, 60, 150, out)
    expected = 1 + g[:, :32] @ np.stack([x[:32], x[60:92], x[150:182]]).T
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_strided_arrays_are_taken():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 9, 9, 3)).transpose(0, 3, 1, 2), rng.normal(size=(4, 4, 7, 7))[::2]
    c = Correlation(kernel=(3, 3))
    np.testing.assert_allclose(weight_gradients([(x, g, c)])[0], _correlated(x, g, c), rtol=1e-12)


def _model(case: Case) -> ir.Model:
    """The case as a float model with the loss sum(y covector)."""
    shapes = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in case.shapes.items())
    constants = f"<{case.constants.replace('double', 'float')}>" if case.constants else ""
    body = f"{case.body} p = Mul(y, v) loss = ReduceSum<keepdims = 0>(p)"
    sizes = ",".join(f"v{i}" for i in range(len(case.shapes["x"])))
    interface = f"({shapes}, float[{sizes}] v) => (float loss)"
    return ir.from_onnx_text(
        f'<ir_version: 9, opset_import: ["": {case.opset}]> case {interface} {constants} {{ {body} }}'
    )


def _feeds(case: Case, model: ir.Model) -> dict[str, np.ndarray]:
    feeds = {n: np.asarray(v, np.float32) for n, v in case.inputs().items()}
    y = Session(model, outputs=["y"], threads=1).run(feeds)["y"]
    return feeds | {"v": np.random.default_rng(3).normal(size=y.shape).astype(np.float32)}


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda c: c.id)
def test_backward_agrees_with_the_graph_and_with_differences(case: Case):
    model = _model(case)
    feeds = _feeds(case, model)
    graph = Session(gradients(model, "loss", list(case.shapes), builder="portable"), threads=1).run(feeds)
    step = Backward(model, "loss", list(case.shapes), threads=2)
    outputs, found = step(feeds)
    np.testing.assert_allclose(outputs["loss"], graph["loss"], rtol=1e-6)
    for name in case.shapes:
        expected = graph[gradient_name(name)]
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=2e-5 * (1 + np.abs(expected).max()))
    direction = np.random.default_rng(5).normal(size=feeds["w"].shape).astype(np.float32)
    ahead, behind = (step(feeds | {"w": feeds["w"] + s * direction})[0]["loss"] for s in (1, -1))  # linear in w
    scale = np.abs(feeds["v"]).sum()
    np.testing.assert_allclose(np.vdot(found["w"], direction), (ahead - behind) / 2, rtol=1e-4, atol=1e-5 * scale)


def test_most_convolutions_are_deferred():
    deferred = [bool(deferred_gradients(_model(c), "loss", list(c.shapes)).contractions) for c in CONVOLUTIONS]
    planar = [len(c.shapes["w"]) < 5 for c in CONVOLUTIONS]
    assert deferred == planar


NET = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4, 9, 9] x, float[4, 4, 3, 3] w) => (float loss, float[N, 4, 9, 9] b) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)
    r = Relu(a)
    b = Conv<pads = [1, 1, 1, 1]>(r, w)
    square = Mul(b, b)
    decay = Mul(w, w)
    one = ReduceSum<keepdims = 0>(square)
    two = ReduceSum<keepdims = 0>(decay)
    loss = Add(one, two)
}"""


def test_shared_weights_and_what_the_graph_adds_are_summed():
    model = ir.from_onnx_text(NET)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.normal(size=(5, 4, 9, 9)).astype(np.float32),
        "w": rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
    }
    graph = Session(gradients(model, "loss", ["w", "x"], builder="portable"), threads=1).run(feeds)
    assert len(deferred_gradients(model, "loss", ["w", "x"]).contractions) == 2
    outputs, found = Backward(model, "loss", ["w", "x"])(feeds)
    assert list(outputs) == ["loss", "b"]
    assert list(found) == ["w", "x"]
    for name in found:
        expected = graph[gradient_name(name)]
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_weight_that_others_depend_on_stays_in_the_graph():
    model = ir.from_onnx_text(NET.replace("a = Conv<", "s = Mul(w, w) a = Conv<").replace("(x, w)\n", "(x, s)\n"))
    upstream = deferred_gradients(model, "loss", ["s", "w"])
    assert [c.weight.name for c in upstream.contractions] == ["w"]
    alone = deferred_gradients(model, "loss", ["s"])
    assert [c.weight.name for c in alone.contractions] == ["s"]


def test_wrong_requests_are_refused():
    with pytest.raises(GradientError, match="no tensor named"):
        Backward(ir.from_onnx_text(NET), "loss", ["u"])
    with pytest.raises(GradientError, match="does not depend on"):
        Backward(ir.from_onnx_text(NET.replace("one = ", "z = Relu(x) one = ")), "loss", ["z"])
