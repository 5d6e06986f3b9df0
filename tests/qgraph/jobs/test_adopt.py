"""Files of other tools, rewritten: the same codes, the same answers, and integer kernels throughout."""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.cli import main
from qgraph.errors import ModelError, QualityWarning
from qgraph.onnxfile.load import load
from qgraph.running.cpu import has_fast_integers
from tests.conftest import DEMO

RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(16, 3, 12, 12)).astype(np.float32)
NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,12,12] x) => (float[N,4] y)
<float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[4,8] w3, float[4] b3>
{
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    s = Add(c2, r1)
    r2 = Relu(s)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
}"""


class Reader(CalibrationDataReader):
    def __init__(self, name="x", images=IMAGES):
        self.feeds = iter([{name: images}])

    def get_next(self):
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    net = ir.to_proto(ir.from_onnx_text(NET))
    for name, shape in (
        ("w1", (8, 3, 3, 3)),
        ("b1", (8,)),
        ("w2", (8, 8, 3, 3)),
        ("b2", (8,)),
        ("w3", (4, 8)),
        ("b3", (4,)),
    ):
        array = RNG.normal(0, 0.3, shape).astype(np.float32)
        net.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(net.graph.node):
        node.name = f"{node.op_type}_{index}"
    path = tmp_path_factory.mktemp("adopt") / "float.onnx"
    onnx.save(net, path)
    return path


FORMS = {
    "u8s8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True},
    "s8s8": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True},
    "u8u8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
    "operators": {
        "quant_format": QuantFormat.QOperator,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
    },
}


@pytest.fixture(scope="module")
def made(floats):
    """The same network, quantized by onnxruntime in several forms."""
    found = {}
    for name, options in FORMS.items():
        found[name] = floats.with_name(f"{name}.onnx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(floats, found[name], Reader(), **options)
    return found


def outputs(model, feeds):
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    content = proto.SerializeToString() if isinstance(proto, onnx.ModelProto) else str(proto)
    return onnxruntime.InferenceSession(content).run(None, feeds)[0]


def decibels(want, have):
    return 10 * np.log10(np.square(want).sum() / max(np.square(want - have).sum(), 1e-30))


@pytest.mark.parametrize("form", FORMS)
def test_onnxruntimes_own_files_run_on_integers_and_answer_the_same(made, form):
    adopted = qgraph.adopt(made[form], measure=False)
    moved = [layer.name for layer in adopted.layers if layer.moved]
    assert moved == (["Gemm_7"] if form == "u8u8" else [])  # products of matrices have no zero point for bytes
    feeds = {"x": IMAGES}
    if form == "u8u8" and has_fast_integers() is False:
        pytest.skip("moved to signed codes for VNNI, whose pairs saturate on this processor")
    # what is left is the rounding of sums that onnxruntime moved, far below the quantization itself
    assert decibels(outputs(made[form], feeds), outputs(adopted.model, feeds)) > 32
    assert all(layer.integer for layer in inspect_fused(load(adopted.model)).layers)


def test_codes_of_weights_stay(made):
    adopted = qgraph.adopt(made["u8s8"], measure=False)
    theirs = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(made["u8s8"]).graph.initializer}
    weights = {v.name: v.const_value.numpy() for v in adopted.net.graph.initializers.values()}
    for name in ("w1", "w2"):
        codes, scale = theirs[f"{name}_quantized"], theirs[f"{name}_scale"].reshape(-1, 1, 1, 1)
        real = next(w for n, w in weights.items() if n.startswith(f"{name}_") and w.shape == codes.shape)
        np.testing.assert_array_equal(np.rint(real / scale), codes)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_file_written_here_comes_back(bits):
    """Bit by bit, except that a tensor which layers read in fewer bits than its other readers keeps the more."""
    options = {"weights": 4, "activations": bits, "allocate_bits": "none", "guard": "off", "measure": False}
    theirs = qgraph.quantize(DEMO / "digits.onnx", DEMO / "digits_calibration.npz", limit=32, **options)
    adopted = qgraph.adopt(theirs.model, measure=False)
    feeds = next(qgraph.open_data(DEMO / "digits_test.npz", load(DEMO / "digits.onnx"), limit=64).batches(64)).feeds
    exact, before, after = (outputs(model, feeds) for model in (DEMO / "digits.onnx", theirs.model, adopted.model))
    if bits == 8:
        np.testing.assert_array_equal(before, after)
    assert decibels(exact, after) > decibels(exact, before) - 0.5
    assert [layer.weight.bits for layer in adopted.plan.layers] == [layer.weight.bits for layer in theirs.plan.layers]
    assert {grid.bits for grid in adopted.plan.activations} == {8, bits}


@pytest.mark.parametrize("bits", [3, 8])
def test_weights_alone_stay_alone(bits):
    theirs = qgraph.quantize(DEMO / "digits.onnx", activations=None, weights=bits, measure=False)
    adopted = qgraph.adopt(theirs.model, measure=False)
    assert {layer.runs for layer in adopted.layers} == {"floats"}
    assert adopted.kept == len(adopted.layers)
    feeds = next(qgraph.open_data(DEMO / "digits_test.npz", load(DEMO / "digits.onnx"), limit=8).batches(8)).feeds
    assert decibels(outputs(theirs.model, feeds), outputs(adopted.model, feeds)) > 100


def test_dynamic_products_stay_dynamic(floats):
    path = floats.with_name("dynamic.onnx")
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,16] x) => (float[N,4] y) <float[16,8] w1, float[8,4] w2>
    { h = MatMul(x, w1)  r = Relu(h)  y = MatMul(r, w2) }"""
    net = ir.to_proto(ir.from_onnx_text(text))
    for name, shape in (("w1", (16, 8)), ("w2", (8, 4))):
        net.graph.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name))
    source = floats.with_name("products.onnx")
    onnx.save(net, source)
    quantize_dynamic(source, path)
    adopted = qgraph.adopt(path, measure=False)
    assert [layer.runs for layer in adopted.layers] == ["dynamic", "dynamic"]
    x = RNG.normal(size=(5, 16)).astype(np.float32)
    assert decibels(outputs(path, {"x": x}), outputs(adopted.model, {"x": x})) > 45


def partly(quantized_sum: bool) -> onnx.ModelProto:
    """Two convolutions on grids whose sum is quantized, or left in floats."""
    tail = "q3 = QuantizeLinear(r, s, z)  d3 = DequantizeLinear(q3, s, z)" if quantized_sum else "d3 = Identity(r)"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,2,6,6] x) => (float[N,2,6,6] y) <float s, uint8 z, int8[2,2,1,1] w, float t, int8 zw>
    {{
        q1 = QuantizeLinear(x, s, z)  d1 = DequantizeLinear(q1, s, z)
        dw = DequantizeLinear(w, t, zw)
        a = Conv(d1, dw)
        q2 = QuantizeLinear(a, s, z)  d2 = DequantizeLinear(q2, s, z)
        b = Add(d2, d1)
        r = Relu(b)
        {tail}
        c = Conv(d3, dw)
        q4 = QuantizeLinear(c, s, z)  y = DequantizeLinear(q4, s, z)
    }}"""
    net = ir.to_proto(ir.from_onnx_text(text))
    arrays = {
        "s": np.array(0.03, np.float32),
        "z": np.array(128, np.uint8),
        "w": RNG.integers(-127, 128, (2, 2, 1, 1)).astype(np.int8),
        "t": np.array(0.006, np.float32),
        "zw": np.array(0, np.int8),
    }
    net.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    for index, node in enumerate(net.graph.node):
        node.name = f"{node.op_type}_{index}"
    return net


@pytest.mark.parametrize("quantized_sum", [True, False])
def test_a_tensor_left_in_floats_gets_the_range_that_it_cannot_leave(quantized_sum):
    net = partly(quantized_sum)
    adopted = qgraph.adopt(net, measure=False)
    assert [layer.runs for layer in adopted.layers] == ["integers", "integers"]
    grids = {grid.tensor: grid for grid in adopted.plan.activations}
    (sum_grid,) = (g for name, g in grids.items() if name == "r")
    assert sum_grid.high == pytest.approx(0.03 * (127 if quantized_sum else 254), rel=0.02)
    x = RNG.normal(size=(3, 2, 6, 6)).astype(np.float32)
    assert decibels(outputs(net, {"x": x}), outputs(adopted.model, {"x": x})) > 35


def test_blocks_of_four_bits_stay_in_blocks():
    codes, scale = RNG.integers(0, 256, (8, 2, 8)).astype(np.uint8), RNG.uniform(0.01, 0.1, (8, 2)).astype(np.float32)
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=32, N=8, bits=4, block_size=16, name="product"
    )
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [3, 32])],
        [onnx.helper.make_tensor_value_info("y", 1, [3, 8])],
        [onnx.numpy_helper.from_array(codes, "b"), onnx.numpy_helper.from_array(scale, "s")],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    net = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    adopted = qgraph.adopt(net, measure=False)
    x = RNG.normal(size=(3, 32)).astype(np.float32)
    want = onnxruntime.InferenceSession(net.SerializeToString()).run(None, {"x": x})[0]
    assert [(layer.runs, layer.bits) for layer in adopted.layers] == [("blocks", 4)]
    assert decibels(want, outputs(adopted.model, {"x": x})) > 45


BROKEN = {
    "an axis before opset 13": (11, {}, {"axis": 0}),
    "scales in the shape of the weight": (17, {"shape": (8, 1, 1, 1)}, {"axis": 0}),
    "scales without the first dimension's place": (17, {"shape": (8, 1, 1)}, {"axis": 0}),
    "an axis that does not fit": (17, {}, {"axis": 3}),
    "negative scales": (17, {"sign": -1}, {"axis": 0}),
    "4 bits before opset 21": (17, {"kind": ir.DataType.INT4}, {"axis": 0}),
    "4 bits, negative scales": (21, {"kind": ir.DataType.INT4, "sign": -1}, {"axis": 0}),
}


def one_convolution(opset, held, attributes, *, domain=""):
    """A convolution behind a DequantizeLinear of its weight, and what its weight is meant to be."""
    kind, shape = held.get("kind", ir.DataType.INT8), held.get("shape", (8,))
    low, high = (-8, 8) if kind == ir.DataType.INT4 else (-128, 128)
    codes = RNG.integers(low, high, (8, 3, 3, 3))
    scale = (held.get("sign", 1) * RNG.uniform(0.01, 0.02, 8)).astype(np.float32)
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[N,3,12,12] x) => (float[N,8,10,10] y) {{ v = DequantizeLinear(w, s)  y = Conv(x, v) }}"""
    net = ir.to_proto(ir.from_onnx_text(text))
    net.graph.node[0].attribute.extend(onnx.helper.make_attribute(*pair) for pair in attributes.items())
    net.graph.node[0].domain = domain
    array = ir.tensor(codes.astype(kind.numpy()), dtype=kind, name="w")
    net.graph.initializer.extend([ir.to_proto(array), onnx.numpy_helper.from_array(scale.reshape(shape), "s")])
    return net, (codes * scale.reshape(8, 1, 1, 1)).astype(np.float32)


def weight_of(net):
    return next(v.const_value.numpy() for v in net.graph.initializers.values() if v.shape == (8, 3, 3, 3))


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_onnxruntime_does_not_run_do_afterwards(case, tmp_path):
    net, weight = one_convolution(*BROKEN[case])
    path = tmp_path / "theirs.onnx"
    onnx.save(net, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adopted = qgraph.adopt(path)
    assert [layer.moved for layer in adopted.layers] == [""]
    np.testing.assert_allclose(weight_of(adopted.net), weight, rtol=1e-6)
    assert adopted.quality.basis == "noise"
    adopted.save(str(tmp_path / "ours.onnx"))
    feeds = {"x": IMAGES}
    have = onnxruntime.InferenceSession(tmp_path / "ours.onnx").run(None, feeds)[0]
    assert decibels(outputs(adopted.net.ir_model, feeds), have) > 90
    onnx.checker.check_model(onnx.load(tmp_path / "ours.onnx"), full_check=True)


def test_a_file_that_does_not_run_is_compared_with_its_float_network():
    net, _ = one_convolution(*BROKEN["scales in the shape of the weight"])
    with pytest.warns(UserWarning, match="does not run in onnxruntime: compared with the float network inside it"):
        qgraph.adopt(net)


def test_quantizers_of_another_domain_and_codes_that_are_not_uniform():
    net, weight = one_convolution(17, {}, {"axis": 0}, domain="com.amd.quark")
    net.graph.node[0].op_type = "ExtendedDequantizeLinear"
    np.testing.assert_allclose(weight_of(qgraph.adopt(net, measure=False).net), weight, rtol=1e-6)
    net.graph.node[0].op_type = "BFPQuantizeDequantize"
    net.opset_import.append(onnx.helper.make_opsetid("com.amd.quark", 1))
    with pytest.raises(ModelError, match=r"com.amd.quark.BFPQuantizeDequantize are not on uniform grids"):
        qgraph.adopt(net, measure=False)


def test_what_the_checker_refuses_and_nobody_mends_keeps_its_message():
    net, _ = one_convolution(*BROKEN["an axis before opset 13"])
    net.graph.node[1].op_type = "Convolution"
    with pytest.raises(ModelError, match="refused by the ONNX checker"):
        qgraph.adopt(net)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_step_that_is_none_is_refused(made, scale):
    net = onnx.load(made["s8s8"])
    name = next(n for n in net.graph.node if n.op_type == "QuantizeLinear").input[1]
    held = next(i for i in net.graph.initializer if i.name == name)
    held.CopyFrom(onnx.numpy_helper.from_array(np.array(scale, np.float32), name))
    with pytest.raises(ModelError, match="steps are positive and finite"):
        qgraph.adopt(net)


def test_scales_that_fit_no_axis_are_refused_and_those_of_zero_channels_are_not():
    net, _ = one_convolution(17, {}, {"axis": 0})
    scale = onnx.numpy_helper.to_array(net.graph.initializer[1]).copy()
    scale[2] = 0
    net.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(scale, "s"))
    assert not weight_of(qgraph.adopt(net, measure=False).net)[2].any()
    net.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(scale[:5], "s"))
    with pytest.raises(ModelError, match=r"scales of shape \[5\] .* fit no axis of its codes, \[8, 3, 3, 3\]"):
        qgraph.adopt(net)


def test_one_file_for_model_and_plan_is_refused(made, tmp_path, capsys):
    out = str(tmp_path / "out.onnx")
    assert main(["adopt", str(made["s8s8"]), "-o", out, "--plan", out]) == 2
    assert "--plan and -o both name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_product_of_blocks_that_do_not_fit_is_refused():
    node = onnx.helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=32, N=7, bits=4)
    arrays = {"b": np.zeros((8, 2, 8), np.uint8), "s": np.ones((8, 2), np.float32)}
    values = [onnx.helper.make_tensor_value_info(*value) for value in (("x", 1, [3, 32]), ("y", 1, [3, 8]))]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], constants)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    with pytest.raises(ModelError, match="its grids contradict its operators"):
        qgraph.adopt(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


def test_nodes_in_any_order(made):
    net = onnx.load(made["s8s8"])
    nodes = list(reversed(net.graph.node))
    net.graph.ClearField("node")
    net.graph.node.extend(nodes)
    want, have = (qgraph.adopt(m, measure=False) for m in (made["s8s8"], net))
    assert {layer.name for layer in want.layers} == {layer.name for layer in have.layers}


def test_a_clip_between_codes_is_part_of_the_grid(made):
    """As Brevitas writes narrow ranges."""
    net = onnx.load(made["s8s8"])
    node = next(n for n in net.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    (reader,) = (n for n in net.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == node.output[0])
    reader.input[0] = "narrow"
    bounds = {"low": -100, "high": 100}
    net.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v, np.int8), n) for n, v in bounds.items())
    clip = onnx.helper.make_node("Clip", [node.output[0], "low", "high"], ["narrow"])
    net.graph.node.insert(list(net.graph.node).index(node) + 1, clip)
    adopted = qgraph.adopt(net, measure=False)
    grid = next(grid for grid in adopted.plan.activations if grid.tensor == "x")
    scale = next(onnx.numpy_helper.to_array(i) for i in net.graph.initializer if i.name == node.input[1])
    zero = next(onnx.numpy_helper.to_array(i) for i in net.graph.initializer if i.name == node.input[2])
    assert grid.low == pytest.approx(float(scale) * (-100 - int(zero)))
    feeds = {"x": IMAGES}
    assert decibels(outputs(net, feeds), outputs(adopted.model, feeds)) > 32


def test_a_float_model_is_refused():
    with pytest.raises(ModelError, match="has no grid to adopt"):
        qgraph.adopt(DEMO / "digits.onnx")


def test_the_command_writes_what_it_shows(made, floats, tmp_path, capsys):
    out, plan, network = (str(tmp_path / name) for name in ("fast.onnx", "plan.json", "net.onnx"))
    words = ["adopt", str(made["s8s8"]), "-o", out, "--float", str(floats), "--plan", plan, "--network", network]
    np.save(tmp_path / "x.npy", IMAGES)
    assert main([*words, "--data", str(tmp_path / "x.npy"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kept"] == 3
    assert said["quality"]["outputs"][0]["sqnr_db"] > 25
    assert main(["apply", network, plan, "-o", str(tmp_path / "again.onnx"), "--no-measure"]) == 0
    feeds = {"x": IMAGES}
    np.testing.assert_array_equal(outputs(out, feeds), outputs(tmp_path / "again.onnx", feeds))
    assert main(["adopt", str(floats), "-o", str(tmp_path / "none.onnx")]) == 1
    assert "has no grid to adopt" in capsys.readouterr().err
    assert not (tmp_path / "none.onnx").exists()


def test_a_normalisation_behind_quantized_weights_keeps_their_codes():
    """Tools that leave BatchNormalization in the file: folding it multiplies the steps of the channels alone."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,2,5,5] x) => (float[N,3,5,5] y) <float s, uint8 z, int8[3,2,1,1] w, float[3] t, int8[3] zw,
                                                float[3] gain, float[3] shift, float[3] mean, float[3] var>
    {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        dw = DequantizeLinear<axis=0>(w, t, zw)
        a = Conv(d, dw)
        n = BatchNormalization(a, gain, shift, mean, var)
        r = QuantizeLinear(n, s, z)  y = DequantizeLinear(r, s, z)
    }"""
    net = ir.to_proto(ir.from_onnx_text(text))
    ones = np.ones(3, np.float32)
    arrays = {
        "s": np.array(0.03, np.float32),
        "z": np.array(128, np.uint8),
        "w": np.array([[100, -37], [5, 126], [-91, 64]], np.int8).reshape(3, 2, 1, 1),
        "t": np.array([0.004, 0.008, 0.002], np.float32),
        "zw": np.zeros(3, np.int8),
        "gain": np.array([0.3, -2.0, 1.7], np.float32),
        "shift": ones / 4,
        "mean": ones / 8,
        "var": ones * 2,
    }
    net.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    adopted = qgraph.adopt(net, measure=False)
    assert [layer.moved for layer in adopted.layers] == [""]
    (layer,) = adopted.plan.layers
    np.testing.assert_allclose(layer.weight.scale, arrays["t"] * np.abs(arrays["gain"]) / np.sqrt(2), rtol=1e-4)


@pytest.mark.parametrize(("fast", "here"), [(True, False), (False, True)])
def test_layers_that_can_saturate_are_counted_and_told(floats, tmp_path, monkeypatch, capsys, fast, here):
    from qgraph.cli import adopt as command

    monkeypatch.setattr(command, "has_fast_integers", lambda: fast)
    wide = qgraph.quantize(floats, {"x": IMAGES}, method="minmax", target_cpu="vnni", guard="off", measure=False)
    wide.save(str(tmp_path / "wide.onnx"))
    told = []
    for target in ("vnni", "any"):
        main(
            [
                "adopt",
                str(tmp_path / "wide.onnx"),
                "-o",
                str(tmp_path / "o.onnx"),
                "--no-measure",
                "--target-cpu",
                target,
            ]
        )
        told.append(capsys.readouterr().out)
    assert "layers can saturate" in told[0]
    assert ("such as this one" in told[0]) == here
    assert "can saturate" not in told[1]


@pytest.mark.parametrize(
    ("zero", "told"), [(np.uint16, "its operand has 256 codes, 65,536 in the file"), (np.uint8, "")]
)
def test_codes_that_are_lost_are_told(zero, told):
    net = partly(True)
    net.opset_import[0].version, net.ir_version = 21, 10
    middle = (np.iinfo(zero).max + 1) // 2
    for given in net.graph.initializer:
        if given.name == "z":
            given.CopyFrom(onnx.numpy_helper.from_array(np.array(middle, zero), "z"))
        if given.name == "s":
            given.CopyFrom(onnx.numpy_helper.from_array(np.array(4 / middle, np.float32), "s"))
    adopted = qgraph.adopt(net, measure=False)
    assert {layer.lost for layer in adopted.layers} == {told}
    assert adopted.kept == 2


def test_a_warning_names_no_option_that_adopting_lacks():
    net = partly(True)
    for given in net.graph.initializer:
        if given.name == "s":
            given.CopyFrom(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "s"))
    other = onnx.ModelProto()
    other.CopyFrom(net)
    next(i for i in other.graph.initializer if i.name == "w").CopyFrom(
        onnx.numpy_helper.from_array(RNG.integers(-127, 128, (2, 2, 1, 1)).astype(np.int8), "w")
    )
    x = RNG.normal(size=(8, 2, 6, 6)).astype(np.float32)
    with pytest.warns(QualityWarning, match="the grids are those of the file") as seen:
        qgraph.adopt(net, x, float_model=other)
    assert not any("keep" in str(one.message) or "guard" in str(one.message) for one in seen)
