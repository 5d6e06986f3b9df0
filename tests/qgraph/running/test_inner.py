"""Tensors of bodies as outputs of a session: empty where a branch is not taken, a list where there are steps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qgraph.onnxfile.load import load
from qgraph.running.inner import bodies
from qgraph.running.sessions import Session

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
ONES = "<float[1] one = {1}, int64 two = {2}, bool yes = {1}>"
COUNTS = "(int64 j, bool on, float[1] u) => (bool on1, float[1] v) { on1 = Identity(on) v = Add(u, one) }"
EVERY = "(int64 i, bool go, float[1] s) => (bool go1, float[1] s2)"
ODD = "go1 = Identity(go) k = Mod(i, two) b = Cast <to = 9> (k)"
INNER = f"Loop <body = inner {COUNTS}>"
CASES = {
    "a loop": f"y = {INNER} (n, yes, x)",
    "a loop in a loop": f"""y = Loop (n, yes, x) <body = outer {EVERY} {{
        go1 = Identity(go) s2 = {INNER} (two, go, s) }}>""",
    "a branch in a loop": f"""y = Loop (n, yes, x) <body = outer {EVERY} {{ {ODD}
        s2 = If (b) <then_branch = t () => (float[1] v) {{ v = Add(s, one) }},
                     else_branch = e () => (float[1] w) {{ w = Sub(s, one) }}> }}>""",
    "a loop in a branch": f"""odd = Mod(n, two) c = Cast <to = 9> (odd)
        y = If (c) <then_branch = t () => (float[1] z) {{ z = {INNER} (n, yes, x) }},
                    else_branch = e () => (float[1] w) {{ w = Sub(x, one) }}>""",
    "a loop in a branch in a loop": f"""y = Loop (n, yes, x) <body = outer {EVERY} {{ {ODD}
        s2 = If (b) <then_branch = t () => (float[1] z) {{ z = {INNER} (two, yes, s) }},
                     else_branch = e () => (float[1] w) {{ w = Sub(s, one) }}> }}>""",
    "a branch in a branch in a loop": f"""y = Loop (n, yes, x) <body = outer {EVERY} {{ {ODD}
        s2 = If (b) <then_branch = t () => (float[1] z) {{
            z = If (go) <then_branch = t2 () => (float[1] v) {{ v = Add(s, one) }},
                         else_branch = e2 () => (float[1] w2) {{ w2 = Neg(s) }}> }},
                     else_branch = e () => (float[1] w) {{ w = Sub(s, one) }}> }}>""",
    "a loop that ends early": f"""y = Loop (n, yes, x) <body = outer {EVERY} {{
        go1 = Less(i, two) v = Add(s, one) s2 = Identity(v) }}>""",
    "tensors that grow": """t = Loop (n, yes, x) <
        body = outer (int64 i, bool go, float[k] s) => (bool go1, float[l] v) {
        go1 = Identity(go) h = Add(s, one) v = Concat <axis = 0> (h, one) }> y = ReduceSum(t)""",
}
STEPS = {
    "a loop": [[1], [2], [3]],
    "a loop in a loop": [[1], [2], [3], [4], [5], [6]],
    "a branch in a loop": [[], [0], []],
    "a loop in a branch": [[1], [2], [3]],
    "a loop in a branch in a loop": [[], [0], [1], []],
    "a branch in a branch in a loop": [[], [0], []],
    "a loop that ends early": [[1], [2], [3]],
    "tensors that grow": [[1, 1], [2, 2, 1], [3, 3, 2, 1]],
}


def model(text: str) -> bytes:
    graph = f"{HEAD} g (float[1] x, int64 n) => (float[1] y) {ONES} {{ {text} }}"
    return onnx.parser.parse_model(graph).SerializeToString()


def fed(steps: int) -> dict[str, np.ndarray]:
    return {"x": np.zeros(1, np.float32), "n": np.array(steps)}


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_at_every_step(case):
    made = model(CASES[case])
    steps = 9 if "early" in case else 3
    found = Session(made, outputs=["v", "y"]).run(fed(steps))
    assert [array.tolist() for array in found["v"]] == STEPS[case]
    np.testing.assert_array_equal(found["y"], Session(made).run_list(fed(steps))[0])
    assert [array for array in Session(made, outputs=["v"]).run(fed(0))["v"] if array.size] == []


def test_several_tensors_of_several_loops():
    """Those that a step reads, and the results of a loop that has more results than states."""
    text = f"""y, h = Loop (n, yes, x) <
        body = outer (int64 i, bool go, float[1] s) => (bool go1, float[1] s2, float[1] r) {{
        go1 = Identity(go) s2 = {INNER} (two, go, s) r = Neg(s2) }}>"""
    found = Session(model(text), outputs=["u", "h", "s", "v", "r", "s2", "y"]).run(fed(2))
    whole = {name: np.ravel(found[name]).tolist() for name in found}
    assert whole == {
        "u": [0, 1, 2, 3],
        "h": [-2, -4],
        "s": [0, 2],
        "v": [1, 2, 3, 4],
        "r": [-2, -4],
        "s2": [2, 4],
        "y": [4],
    }


@pytest.mark.parametrize("inputs", ["n", "n, yes"])
def test_a_loop_that_carries_nothing(inputs):
    text = f"""y = Loop ({inputs}) <body = b (int64 i, bool go) => (bool go1, float[1] r) {{
        go1 = Identity(go) k = Cast <to = 1> (i) v = Add(k, one) r = Neg(v) }}>"""
    found = Session(model(text), outputs=["v", "y"]).run(fed(3))
    assert np.ravel(found["v"]).tolist() == [1, 2, 3]
    assert np.ravel(found["y"]).tolist() == [-1, -2, -3]


SCAN = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,5] x, float[5,2] z) => (float[2] last, float[N,2] all) {
    zero = Constant <value = float[2] {0, 0}> ()
    last, all = Scan <num_scan_inputs = 2, scan_input_axes = [-1, 0], scan_input_directions = [INTO, 0],
                      scan_output_directions = [OUT],
        body = b (float[2] s, float[2] e, float[2] f) => (float[2] t, float[2] r) {
            a = Add(s, e) t = Mul(a, f) r = Neg(a) }
    > (zero, x, z)
}"""


@pytest.mark.parametrize("into", ["0", "1"])
@pytest.mark.parametrize("out", ["0", "1"])
def test_a_scan_in_any_direction(into, out):
    made = onnx.parser.parse_model(SCAN.replace("INTO", into).replace("OUT", out)).SerializeToString()
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    found = Session(made, outputs=["a", "e", "last", "all"]).run({"x": x, "z": z})
    for name, array in Session(made).run({"x": x, "z": z}).items():
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(found["e"], x.T[:: -1 if into == "1" else 1])
    np.testing.assert_array_equal(found["a"], -found["all"][:: -1 if out == "1" else 1])


def test_a_loop_in_a_branch_in_a_scan():
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[4,1] x) => (float[1] last) {ONES} {{
        zero = Constant <value = float[1] {{0}}> ()
        last = Scan <num_scan_inputs = 1, body = b (float[1] s, float[1] e) => (float[1] t) {{
            h = Squeeze(e) c = Greater(h, nothing)
            t = If (c) <then_branch = p () => (float[1] q) {{ q = {INNER} (two, yes, e) }},
                        else_branch = m () => (float[1] w) {{ w = Add(s, e) }}> }}> (zero, x)
    }}""".replace("int64 two", "float nothing = {0}, int64 two")
    made = onnx.parser.parse_model(text).SerializeToString()
    x = np.array([[5], [-1], [-2], [7]], np.float32)
    found = Session(made, outputs=["v", "w", "last"]).run({"x": x})
    assert [array.tolist() for array in found["v"]] == [[6], [7], [], [], [8], [9]]
    assert [array.tolist() for array in found["w"]] == [[], [6], [4], []]
    assert found["last"] == [9]


@pytest.mark.parametrize(("opset", "count"), [(13, 2), (12, 0)])
def test_loops_before_opset_13_carry_no_sequences(opset, count):
    proto = onnx.ModelProto.FromString(model(CASES["a loop in a loop"]))
    proto.opset_import[0].version = opset
    assert len(bodies(load(proto).graph)) == count
