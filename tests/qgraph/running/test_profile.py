"""The times of kernels, as onnxruntime's profile tells them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx.parser

from qgraph.running import profile
from qgraph.running.profile import kernel_times

LOOP = """<ir_version: 8, opset_import: ["": 17]> g (float[64,64] x) => (float[64,64] y)
<int64 trips = {3}, bool go = {1}> {
    start = Exp (x)
    y = Loop (trips, go, start) <body = b (int64 i, bool c, float[64,64] v) => (bool d, float[64,64] w) {
        d = Identity (c)
        w = Tanh (v)
    }>
}"""


def span(ts, dur, name="a"):
    return {"ts": ts, "dur": dur, "name": f"{name}_kernel_time", "cat": "Node", "args": {"node_index": name}}


def test_bodies_are_timed_instead_of_what_runs_them():
    model = onnx.parser.parse_model(LOOP).SerializeToString()
    found = kernel_times(model, {"x": np.ones((64, 64), np.float32)}, runs=3)
    assert Counter(kernel.op for kernel in found) == {"Exp": 1, "Identity": 1, "Tanh": 1}
    assert all(kernel.seconds >= 0 for kernel in found)


def test_the_times_of_a_body_add_up_and_the_least_run_counts():
    runs = [{"ts": ts, "dur": 90, "name": "model_run"} for ts in (0, 100, 200)]
    events = [span(2, 1), span(110, 4), span(120, 5), span(210, 6), span(220, 2), span(230, 1, "b")]
    assert [(e["name"][0], spent) for e, spent in profile._least([*runs, *events])] == [("a", 8), ("b", 1)]


def test_spans_that_contain_others_are_left_out():
    outer, inner, after, other = span(0, 9, "if"), span(2, 3), span(9, 0), {"ts": 1, "dur": 1, "name": "a_fence_before"}
    assert list(profile._innermost([after, other, inner, outer])) == [inner, after]
