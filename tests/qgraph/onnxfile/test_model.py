"""Loading, normalising and saving."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qgraph.errors import ModelError, UsageError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import raise_opset
from qgraph.onnxfile.write import save
from qgraph.running.files import write_atomically
from qgraph.running.sessions import Session

RNG = np.random.default_rng(1)


def run(model, feeds):
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    proto.ir_version = min(max(proto.ir_version, 4), 13)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


CONV_BN = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N,3,8,8] x, float[4,{inner},3,3] w,
     float[{out}] gamma, float[{out}] beta, float[{out}] mean, float[{out}] var) => (float[N,{out},H,W] y) {{
  c = {op}(x, w)
  y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)
}}
"""


def batch_norm(channels):
    return {
        "gamma": array(channels),
        "beta": array(channels),
        "mean": array(channels),
        "var": np.abs(array(channels)) + 0.1,
    }


@pytest.mark.parametrize(
    ("op", "weight", "channels"),
    [
        ("Conv<pads=[1,1,1,1]>", (4, 3, 3, 3), 4),
        ("Conv<group=3>", (6, 1, 3, 3), 6),
        ("ConvTranspose<strides=[2,2]>", (3, 5, 3, 3), 5),
        ("ConvTranspose<group=3>", (3, 2, 3, 3), 6),
    ],
)
def test_batch_normalization_folds_exactly(model_from_text, op, weight, channels):
    text = CONV_BN.format(op=op, inner=weight[1], out=channels).replace(
        f"float[4,{weight[1]},3,3] w", f"float[{','.join(map(str, weight))}] w"
    )
    proto = model_from_text(text, w=array(*weight), **batch_norm(channels))
    net = normalise(load(proto))
    assert [n.op_type for n in net.graph] == [op.split("<")[0]]
    x = array(2, 3, 8, 8)
    np.testing.assert_allclose(run(net.ir_model, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_gemm_batch_normalization_folds(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,6] x, float[6,4] w, float[4] b, float[4] gamma, float[4] beta, float[4] mean, float[4] var)
    => (float[N,4] y) {
      c = Gemm(x, w, b)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }"""
    proto = model_from_text(text, w=array(6, 4), b=array(4), **batch_norm(4))
    net = normalise(load(proto))
    assert [n.op_type for n in net.graph] == ["Gemm"]
    x = array(5, 6)
    np.testing.assert_allclose(run(net.ir_model, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_batch_normalization_with_a_second_reader_stays(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3,8,8] x, float[4,3,3,3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var)
    => (float[N,4,6,6] y) {
      c = Conv(x, w)
      n = BatchNormalization(c, gamma, beta, mean, var)
      y = Add(n, c)
    }"""
    net = normalise(load(model_from_text(text, w=array(4, 3, 3, 3), **batch_norm(4))))
    assert [n.op_type for n in net.graph] == ["Conv", "BatchNormalization", "Add"]


def test_training_mode_is_refused_with_the_way_out(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3,8,8] x, float[3] gamma, float[3] beta, float[3] mean, float[3] var) => (float[N,3,8,8] y) {
      y, m, v = BatchNormalization<training_mode=1>(x, gamma, beta, mean, var)
    }"""
    with pytest.raises(ModelError, match=r"training mode.*model\.eval\(\)"):
        normalise(load(model_from_text(text, **batch_norm(3))))


def test_weights_behind_chains_become_initializers(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x, double[12] flat) => (float[N,3] y) {
      shape = Constant<value_ints=[3,4]>()
      cast = Cast<to=1>(flat)
      same = Identity(cast)
      rows = Reshape(same, shape)
      w = Transpose<perm=[1,0]>(rows)
      y = MatMul(x, w)
    }"""
    flat = RNG.standard_normal(12)
    proto = model_from_text(text, flat=flat)
    net = normalise(load(proto))
    assert [n.op_type for n in net.graph] == ["MatMul"]
    x = array(2, 4)
    np.testing.assert_allclose(run(net.ir_model, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-6, atol=1e-6)


def test_constants_cast_like_an_activation_are_folded(model_from_text):
    """The bias that torch's dynamo exporter writes for a convolution without one: zeros in the type of its input."""
    text = """
    <ir_version: 8, opset_import: ["": 18]>
    net (float[N,3,8,8] x, float[4,3,3,3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var)
        => (float[N,4,H,W] y) {
      [zero] zero = Constant<value = float {0.0}>()
      like = CastLike(zero, x)
      [size] size = Constant<value = int64[1] {4}>()
      b = Expand(like, size)
      c = Conv(x, w, b)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }
    """
    model = model_from_text(text, w=array(4, 3, 3, 3), **batch_norm(4))
    net = normalise(load(model))
    assert [node.op_type for node in net.graph] == ["Conv"]
    feeds = {"x": array(2, 3, 8, 8)}
    np.testing.assert_allclose(run(net.ir_model, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


def test_a_cast_like_that_makes_an_output_keeps_its_name(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3] x, double[1] kind) => (double[N,3] y) { y = CastLike(x, kind) }"""
    net = normalise(load(model_from_text(text)))
    assert [n.op_type for n in net.graph] == ["Cast"]
    (output,) = net.graph.outputs
    assert (output.name, output.dtype) == ("y", ir.DataType.DOUBLE)


@pytest.mark.parametrize("bias", [(4,), (1, 4), (1,), ()], ids=str)
def test_a_bias_behind_a_matrix_product_joins_it(model_from_text, bias):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,6] x, float[6,4] w, float[SHAPE] b) => (float[N,4] y) {
      [product] p = MatMul(x, w)
      y = Add(b, p)
    }""".replace("float[SHAPE] b", f"float[{','.join(map(str, bias))}] b" if bias else "float b")
    proto = model_from_text(text, w=array(6, 4), b=array(*bias))
    net = normalise(load(proto))
    assert [(n.op_type, n.name) for n in net.graph] == [("Gemm", "product")]
    x = array(5, 6)
    np.testing.assert_allclose(run(net.ir_model, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("x", "b"), [("2,N,6", "4"), ("N,6", "5,4"), ("N,6", "2,1,4")])
def test_other_sums_behind_a_matrix_product_stay(model_from_text, x, b):
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[{x}] x, float[6,4] w, float[{b}] b) => (float y) {{
      p = MatMul(x, w)
      s = Add(p, b)
      y = ReduceSum<keepdims=0>(s)
    }}"""
    model = model_from_text(text, w=array(6, 4), b=array(*map(int, b.split(","))))
    assert {"MatMul", "Add"} <= {n.op_type for n in normalise(load(model)).graph}


def test_notes_of_exporters_are_dropped_and_those_of_the_model_kept(model_from_text):
    proto = model_from_text('<ir_version: 10, opset_import: ["": 17]> net (float[N] x) => (float[N] y) { y = Relu(x) }')
    proto.graph.node[0].metadata_props.add(key="pkg.torch.stack_trace", value="File ...")
    proto.metadata_props.add(key="author", value="someone")
    net = normalise(load(proto)).ir_model
    assert not net.graph[0].metadata_props
    assert net.metadata_props == {"author": "someone"}


def test_growing_constants_are_not_folded(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,512] x, float[1] one) => (float[N,512] y) {
      shape = Constant<value_ints=[64,512]>()
      big = Expand(one, shape)
      row = ReduceMean<axes=[0], keepdims=1>(big)
      y = Mul(x, row)
    }"""
    net = normalise(load(model_from_text(text, one=array(1))))
    assert "Expand" in [n.op_type for n in net.graph]


def test_functions_are_inlined():
    text = """
    <ir_version: 8, opset_import: ["": 17, "local": 1]>
    net (float[N,4] x) => (float[N,4] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["": 17]>
    twice (a) => (b) { b = Add(a, a) }
    """
    net = normalise(load(onnx.parser.parse_model(text)))
    assert [n.op_type for n in net.graph] == ["Add"]
    assert not net.ir_model.functions


def test_initializers_leave_the_inputs():
    text = """
    <ir_version: 3, opset_import: ["": 9]>
    net (float[N,4] x, float[4,2] w) => (float[N,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { y = MatMul(x, w) }"""
    net = normalise(load(onnx.parser.parse_model(text)))
    assert [v.name for v in net.graph.inputs] == ["x"]
    assert net.ir_model.ir_version >= 4


def test_every_node_gets_its_own_name():
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x) => (float[N,4] y) {
      [same] a = Relu(x)
      [same] b = Relu(a)
      y = Relu(b)
    }"""
    names = [n.name for n in normalise(load(onnx.parser.parse_model(text))).graph]
    assert names == ["same", "same_2", "Relu_y"]


def test_opset_is_raised_and_compared(model_from_text):
    text = """
    <ir_version: 4, opset_import: ["": 9]>
    net (float[N,2,6] x) => (float[N,2,3] y) { y = Slice<axes=[2], starts=[0], ends=[3]>(x) }"""
    proto = onnx.parser.parse_model(text)
    net = raise_opset(normalise(load(proto)))
    assert net.opset == 13
    x = array(2, 2, 6)
    np.testing.assert_array_equal(run(net.ir_model, {"x": x})[0], run(proto, {"x": x})[0])


def test_opset_can_only_be_raised(digits):
    with pytest.raises(UsageError, match="opset=13: the model"):
        raise_opset(normalise(load(digits)), 13)
    with pytest.raises(UsageError, match=r"opset=99: the model has opset .* can be raised up to"):
        raise_opset(normalise(load(digits)), 99)


def test_digest_is_of_the_content_not_of_the_file(digits, tmp_path):
    proto = onnx.load(digits)
    proto.doc_string = "another comment"
    proto.graph.node[0].doc_string = "here too"
    onnx.save(proto, tmp_path / "copy.onnx")
    digest = normalise(load(digits)).digest
    assert normalise(load(tmp_path / "copy.onnx")).digest == digest
    weight = proto.graph.initializer[0]
    changed = onnx.numpy_helper.to_array(weight) + np.float32(1e-3)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    assert normalise(load(proto)).digest != digest


def test_external_data_is_read_from_its_own_folder_only(digits, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    proto = onnx.load(digits)
    onnx.save(onnx.load(digits), inside / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = RNG.random((1, 1, 8, 8), np.float32)
    net = normalise(load(inside / "m.onnx"))
    np.testing.assert_allclose(run(net.ir_model, {"input": x})[0], run(proto, {"input": x})[0], rtol=1e-4, atol=1e-4)
    os.rename(inside / "m.data", tmp_path / "m.data")
    outside = onnx.load(inside / "m.onnx", load_external_data=False)
    for tensor in outside.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../m.data"
    onnx.save(outside, inside / "m.onnx")
    with pytest.raises(ModelError, match=r"external|outside|\.\."):
        normalise(load(inside / "m.onnx"))


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "out.bin"
    write_atomically(target, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]


def test_saved_model_is_the_model(digits, tmp_path):
    net = normalise(load(digits))
    nbytes = save(net.ir_model, tmp_path / "m.onnx")
    assert nbytes == (tmp_path / "m.onnx").stat().st_size
    assert normalise(load(tmp_path / "m.onnx")).digest == net.digest


def test_face_detector_loads_without_initializer_inputs(shared):
    net = raise_opset(normalise(load(shared / "models" / "face_rfb320.onnx")))
    assert [v.name for v in net.graph.inputs] == ["input"]
    assert "BatchNormalization" not in {n.op_type for n in net.graph}
    assert net.opset == 13


@pytest.mark.parametrize("factors", ["alpha=0.5", "beta=2.0", "alpha=0.25, beta=0.5"])
def test_batch_normalization_behind_a_scaled_gemm_stays(model_from_text, factors):
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,6] x, float[6,4] w, float[4] b, float[4] gamma, float[4] beta, float[4] mean, float[4] var)
    => (float[N,4] y) {{
      c = Gemm<{factors}>(x, w, b)
      y = BatchNormalization(c, gamma, beta, mean, var)
    }}"""
    proto = model_from_text(text, w=array(6, 4), b=array(4), **batch_norm(4))
    net = normalise(load(proto))
    assert [n.op_type for n in net.graph] == ["Gemm", "BatchNormalization"]
    x = array(5, 6)
    np.testing.assert_allclose(run(net.ir_model, {"x": x})[0], run(proto, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_a_conversion_that_changes_results_does_not_pass(model_from_text, monkeypatch):
    text = """
    <ir_version: 8, opset_import: ["": 11]>
    net (float[N,3] x) => (float[N,3] y) { y = OPERATOR(x) }"""
    net = normalise(load(model_from_text(text.replace("OPERATOR", "Relu"))))
    wrong = model_from_text(text.replace("OPERATOR", "Abs").replace("11", "13"))
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda model, target: wrong)
    with pytest.raises(ModelError, match=r"from opset 11 to 13 changes output 'y'.*export with opset 13"):
        raise_opset(net)


def test_dropout_in_training_stays(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4] x) => (float[N,4] y) {
      ratio = Constant<value = float {0.5}>()
      training = Constant<value = bool {MODE}>()
      [plain] a = Dropout(x)
      [given] d = Dropout(a, ratio, training)
      y = Relu(d)
    }"""
    net = normalise(load(model_from_text(text.replace("MODE", "1"))))
    assert [n.name for n in net.graph if n.op_type == "Dropout"] == ["given"]


@pytest.mark.parametrize("place", ["file", "folder"])
def test_external_data_behind_a_link_are_not_read(model_from_text, tmp_path, place):
    proto = model_from_text(
        """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }""",
        w=array(64, 64),
    )
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    (elsewhere / "w.bin").write_bytes(proto.graph.initializer[0].raw_data)
    if place == "file":
        (here / "w.bin").symlink_to(elsewhere / "w.bin")
    else:
        (here / "data").symlink_to(elsewhere)
    onnx.external_data_helper.set_external_data(
        proto.graph.initializer[0], "w.bin" if place == "file" else "data/w.bin"
    )
    proto.graph.initializer[0].ClearField("raw_data")
    (here / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="not a regular file there"):
        load(here / "net.onnx")


UNSORTED = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x) => (float[n, 4] y) <float[4, 4] w = {
 1.0, 0.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.0, 1.0, 0.0, 0.0, 0.5, 0.0, 1.0}> {
    k = ReduceSum<keepdims = 0>(x) z = Constant<value_float = 0.0>() go = Greater(k, z) b = MatMul(x, w)
    y = If (go) <then_branch = t () => (p) { p = Relu(b) }, else_branch = e () => (q) { q = Neg(b) }>
}"""


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [3, 4, 2, 0, 1], [0, 1, 2, 4, 3]])
def test_nodes_may_come_in_any_order(order, tmp_path):
    """Converters to 16-bit floats append casts, which onnxruntime sorts in."""
    proto = ir.to_proto(ir.from_onnx_text(UNSORTED))
    nodes = [proto.graph.node[index] for index in order]
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(proto)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    onnx.save(shuffled, tmp_path / "m.onnx")
    x = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)
    (want,) = Session(load(proto).ir_model).run_list({"x": x})
    for given in (shuffled, tmp_path / "m.onnx"):
        loaded = load(given)
        np.testing.assert_array_equal(Session(loaded.ir_model).run_list({"x": x})[0], want)
        onnx.checker.check_model(ir.to_proto(loaded.ir_model))


def test_a_circle_is_refused():
    proto = ir.to_proto(ir.from_onnx_text(UNSORTED))
    proto.graph.node[3].input[0] = "y"
    with pytest.raises(ModelError, match="topologically sorted"):
        load(proto)
