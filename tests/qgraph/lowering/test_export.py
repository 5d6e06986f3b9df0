"""Simulation and export: two outputs of one plan, the same numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

import qmath
from qgraph.assess.bits_in_file import bits_in_file
from qgraph.assess.fused import inspect_fused
from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.lowering.export import export
from qgraph.lowering.packing import pack_bits, stored_bytes, weight_bytes
from qgraph.lowering.simulate import simulate
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.grids import activation_grid, weight_grid
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, WeightQuant
from qgraph.plan.saturation import without_saturation
from qgraph.running.sessions import Session

RNG = np.random.default_rng(3)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def full_range_plan(net, feeds, *, bits=8, activation_bits=8, per_channel=True, symmetric=True, shift=False):
    """A plan from the weights' ranges and the ranges that one batch shows."""
    view = GraphView(net)
    layers = []
    for layer in view.layers:
        weight = layer.weight_array()
        axis = layer.scale_axis if per_channel else None
        over = tuple(i for i in range(weight.ndim) if i != axis)
        grid = weight_grid(
            weight.min(over), weight.max(over), bits=bits, granularity=qmath.Granularity(axis=axis), symmetric=symmetric
        )
        channels = weight.shape[layer.output_axis] * (layer.groups if layer.op == "ConvTranspose" else 1)
        amount = tuple(np.linspace(-0.5, 0.5, channels).astype(np.float32).tolist()) if shift else ()
        layers.append(LayerQuant(name=layer.name, op=layer.op, weight=grid, bias_shift=amount))
    activations = []
    if activation_bits:
        sites = view.activation_sites(view.layers)
        values = {
            **Session(net.ir_model, outputs=[s.tensor for s in sites if s.tensor not in feeds] or None).run(feeds),
            **feeds,
        }
        activations = [
            activation_grid(s.tensor, values[s.tensor].min(), values[s.tensor].max(), bits=activation_bits)
            for s in sites
        ]
    plan = QuantPlan(model=net.digest, recipe="test", layers=tuple(layers), activations=tuple(activations))
    return without_saturation(plan, view)  # so that every CPU computes the same


LAYERS = {
    "conv1d": ("float[N,4,12] x", "Conv<group=2>(x, w)", (6, 2, 3), (2, 4, 12)),
    "conv2d": ("float[N,4,6,6] x", "Conv<pads=[1,1,1,1]>(x, w)", (5, 4, 3, 3), (2, 4, 6, 6)),
    "conv3d": ("float[N,2,4,4,4] x", "Conv(x, w)", (3, 2, 2, 2, 2), (1, 2, 4, 4, 4)),
    "depthwise": ("float[N,4,6,6] x", "Conv<group=4>(x, w)", (4, 1, 3, 3), (2, 4, 6, 6)),
    "transposed": ("float[N,4,5,5] x", "ConvTranspose<strides=[2,2]>(x, w)", (4, 3, 2, 2), (2, 4, 5, 5)),
    "transposed groups": ("float[N,4,5,5] x", "ConvTranspose<group=2>(x, w)", (4, 3, 2, 2), (2, 4, 5, 5)),
    "gemm": ("float[N,7] x", "Gemm(x, w)", (7, 5), (3, 7)),
    "gemm transposed": ("float[N,7] x", "Gemm<transB=1, alpha=0.5>(x, w)", (5, 7), (3, 7)),
    "matmul": ("float[N,4,7] x", "MatMul(x, w)", (7, 5), (2, 4, 7)),
    "matmul batched": ("float[N,2,4,7] x", "MatMul(x, w)", (2, 7, 5), (3, 2, 4, 7)),
    "matmul left": ("float[N,7,4] x", "MatMul(w, x)", (5, 7), (2, 7, 4)),
}


def one_layer(model_from_text, kind):
    declared, call, weight, data = LAYERS[kind]
    rank = {"conv1d": 3, "conv3d": 5, "gemm": 2, "gemm transposed": 2, "matmul": 3, "matmul left": 3}.get(kind, 4)
    dims = ",".join("ABCDE"[:rank])
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net ({declared}, float[{",".join(map(str, weight))}] w) => (float[{dims}] y) {{ y = {call} }}"""
    return normalise(load(model_from_text(text, w=array(*weight)))), {"x": array(*data)}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_weight_only_files_compute_what_the_plan_says(model_from_text, kind, bits, per_channel, symmetric):
    net, feeds = one_layer(model_from_text, kind)
    plan = full_range_plan(net, feeds, bits=bits, activation_bits=None, per_channel=per_channel, symmetric=symmetric)
    expected = Session(simulate(net, plan)).run(feeds)["y"]
    np.testing.assert_allclose(Session(export(net, plan)).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("activation_bits", [4, 8])
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (8, False), (7, False), (3, False)])
def test_quantized_activations_agree_to_one_step(model_from_text, kind, activation_bits, shift, bits, symmetric):
    net, feeds = one_layer(model_from_text, kind)
    options = {"bits": bits, "symmetric": symmetric, "activation_bits": activation_bits}
    plan = full_range_plan(net, feeds, shift=shift, **options)
    floats = Session(simulate(net, plan)).run(feeds)["y"]
    integers = Session(export(net, plan)).run(feeds)["y"]
    np.testing.assert_array_equal(Session(export(net, plan, packed=False)).run(feeds)["y"], integers)
    scales = {a.tensor: a.scale for a in plan.activations}
    accumulator = scales.get("x", 1e-3) * max(plan.layers[0].weight.scale)  # the step of an int32 bias
    step = scales.get("y", max(accumulator, 1e-5))
    assert np.abs(floats - integers).max() <= 1.01 * step
    if shift and "gemm" in kind:
        return  # its bias is rounded to the accumulator's grid
    assert np.mean(np.abs(floats - integers) > 1e-4 + 1e-4 * np.abs(floats)) < 0.02  # ties of rounding alone


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_narrow_asymmetric_weights_need_no_zero_point(model_from_text, bits):
    net, feeds = residual(model_from_text)
    plan = full_range_plan(net, feeds, bits=bits, symmetric=False)
    assert any(any(quant.weight.zero_point) for quant in plan.layers)
    model = Model(ir_model=export(net, plan), source="net", nbytes=0)
    assert all(layer.integer for layer in inspect_fused(model).layers)
    assert {found[0] for found in bits_in_file(model).values()} <= set(range(2, bits + 1))


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 1001])
def test_bit_planes_hold_every_code(bits, count):
    codes = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count).astype(np.int8)
    planes = pack_bits(codes, bits)
    assert planes.nbytes == weight_bytes((count,), bits) == bits * -(-count // 8)
    lanes = (planes[None] >> np.arange(8, dtype=np.uint8)[:, None, None]) & 1
    worth = np.array([*(2**i for i in range(bits - 1)), -(2 ** (bits - 1))])
    unpacked = np.einsum("jkn,k->jn", lanes.astype(int), worth).reshape(-1)[:count]
    np.testing.assert_array_equal(unpacked, codes)


RESIDUAL = """
<ir_version: 8, opset_import: ["": {opset}]>
net (float[N,3,8,8] x, float[8,3,3,3] w1, float[8] b1, float[8,8,3,3] w2, float[5,8] w3, int64[8] pads) => (float[N,5]
y) {{
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2)
  m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r1)
  q = Pad(m, pads)
  t = Transpose<perm=[0,1,3,2]>(q)
  s = Add(c2, t)
  r2 = Relu(s)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm<transB=1>(f, w3)
}}"""


def residual(model_from_text, opset=17):
    weights = {
        "w1": array(8, 3, 3, 3),
        "b1": array(8),
        "w2": array(8, 8, 3, 3),
        "w3": array(5, 8),
        "pads": np.zeros(8, np.int64),
    }
    return normalise(load(model_from_text(RESIDUAL.format(opset=opset), **weights))), {"x": array(4, 3, 8, 8)}


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("bits", [4, 8])
def test_residual_network(model_from_text, opset, bits):
    net, feeds = residual(model_from_text, opset)
    plan = full_range_plan(net, feeds, bits=bits)
    quantized = export(net, plan)
    proto = ir.to_proto(quantized)
    onnx.checker.check_model(proto, full_check=True)
    assert [v.name for v in quantized.graph.inputs] == ["x"]
    assert [(v.name, str(v.shape)) for v in quantized.graph.outputs] == [("y", str(net.graph.outputs[0].shape))]
    floats = Session(simulate(net, plan)).run(feeds)["y"]
    np.testing.assert_allclose(Session(quantized).run(feeds)["y"], floats, rtol=0.05, atol=0.05)


def test_values_are_moved_as_integers(model_from_text):
    net, feeds = residual(model_from_text)
    exported = export(net, full_range_plan(net, feeds))
    ShapeInferencePass()(exported)
    movers = [n for n in exported.graph if n.op_type in ("MaxPool", "Pad", "Transpose")]
    assert movers
    assert all(n.outputs[0].dtype == ir.DataType.UINT8 for n in movers)


def test_layers_read_fewer_bits_than_the_sum_beside_them(model_from_text):
    net, feeds = residual(model_from_text)
    plan = full_range_plan(net, feeds)
    (r1,) = [a for a in plan.activations if a.tensor == "r1"]
    low_bit = activation_grid("r1", r1.low, r1.high, bits=2, role="operand")
    mixed = QuantPlan(**{**plan_fields(plan), "activations": (*plan.activations, low_bit)})
    graph = simulate(net, mixed).graph
    conv2, add = (
        next(n for n in graph if n.op_type == op and n.name in ("Conv_c2", "Add_s")) for op in ("Conv", "Add")
    )
    values = Session(simulate(net, mixed), outputs=[conv2.inputs[0].name, add.inputs[1].name]).run(feeds)
    assert len(np.unique(values[conv2.inputs[0].name])) <= 4
    assert len(np.unique(values[add.inputs[1].name])) > 16
    floats = Session(simulate(net, mixed)).run(feeds)["y"]
    np.testing.assert_allclose(Session(export(net, mixed)).run(feeds)["y"], floats, rtol=0.05, atol=0.1)


def plan_fields(plan):
    return {f: getattr(plan, f) for f in plan.__dataclass_fields__}


def test_a_quantized_graph_output_keeps_its_name(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3,4,4] x, float[4,3,1,1] w) => (float[N,4,4,4] y) { c = Conv(x, w)
      y = Relu(c) }"""
    net = normalise(load(model_from_text(text, w=array(4, 3, 1, 1))))
    feeds = {"x": array(2, 3, 4, 4)}
    plan = full_range_plan(net, feeds)
    assert "y" in {a.tensor for a in plan.activations}
    for build in (simulate, export):
        model = build(net, plan)
        assert [v.name for v in model.graph.outputs] == ["y"]
        assert len(np.unique(Session(model).run(feeds)["y"])) <= 256


def test_plans_that_do_not_fit_are_refused(model_from_text):
    net, feeds = residual(model_from_text)
    plan = full_range_plan(net, feeds)
    with pytest.raises(PlanError, match="another model"):
        export(net, QuantPlan(**{**plan_fields(plan), "model": "0" * 64}))
    stray = LayerQuant(name="nowhere", op="Conv", weight=plan.layers[0].weight)
    with pytest.raises(PlanError, match="'nowhere', which is no quantizable layer"):
        export(net, QuantPlan(**{**plan_fields(plan), "layers": (stray,)}))
    with pytest.raises(PlanError, match="tensor 'nothing'"):
        export(net, QuantPlan(**{**plan_fields(plan), "activations": (activation_grid("nothing", 0, 1, bits=8),)}))


@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "transposed", "gemm", "gemm transposed", "matmul"])
@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_channels_of_different_widths(model_from_text, kind, activation_bits, symmetric):
    net, feeds = one_layer(model_from_text, kind)
    plan = full_range_plan(net, feeds, bits=4, activation_bits=activation_bits)
    layer, weight = plan.layers[0], GraphView(net).layers[0].weight_array()
    granularity = layer.weight.granularity
    axis = granularity.axis
    widths = tuple([5, 2, 8 if symmetric else 7, 4, 5, 3][: weight.shape[axis]])
    over = tuple(i for i in range(weight.ndim) if i != axis)
    low, high = weight.min(over), weight.max(over)
    grid = weight_grid(low, high, bits=4, granularity=granularity, symmetric=symmetric, channel_bits=widths)
    mixed = plan.map_layers(lambda quant: dataclasses.replace(quant, weight=grid))
    mixed = without_saturation(mixed, GraphView(net))
    codes = np.moveaxis(weights.codes(weight, grid), axis, 0).reshape(weight.shape[axis], -1)
    reach = np.abs(codes).max(axis=1) if symmetric else np.maximum(codes.max(axis=1), -1 - codes.min(axis=1))
    assert reach.tolist() == [2 ** (b - 1) - 1 for b in widths]
    quantized = export(net, mixed)
    expected = Session(simulate(net, mixed)).run(feeds)["y"]
    step = 1.01 * max((a.scale for a in plan.activations), default=1e-5)
    np.testing.assert_allclose(Session(quantized).run(feeds)["y"], expected, rtol=1e-5, atol=step)
    arrays = [v.const_value.numpy() for v in quantized.graph.initializers.values()]
    planes = sum(a.nbytes for a in arrays if a.dtype == np.uint8 and a.ndim == 2)
    assert planes + widths.count(8) * weight.size // weight.shape[axis] == stored_bytes(weight.shape, grid)


@pytest.mark.parametrize(("bias", "integer"), [(2.0**31 - 128, True), (2.0**31, False), (-(2.0**32), False)])
def test_gemm_biases_beyond_32_bits_stay_in_floats(model_from_text, bias, integer):
    """In steps of the accumulator, here 1."""
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,2] x, float[2,3] w, float[3] b) => (float[N,3] y) { y = Gemm(x, w, b) }"""
    weight = np.full((2, 3), 127, np.float32)
    net = normalise(load(model_from_text(text, w=weight, b=np.array([bias, 0, 5], np.float32))))
    layer = LayerQuant(name=GraphView(net).layers[0].name, op="Gemm", weight=WeightQuant(bits=8, scale=(1.0,)))
    grid = ActivationQuant(tensor="x", bits=8, scale=1.0)
    plan = QuantPlan(model=net.digest, recipe="test", layers=(layer,), activations=(grid,))
    exported = export(net, plan)
    assert [v.const_value.dtype for v in exported.graph.initializers.values()].count(ir.DataType.INT32) == integer * 2
    found = Session(exported, optimize=False).run({"x": np.zeros((1, 2), np.float32)})["y"]
    np.testing.assert_allclose(found, [[bias, 0, 5]], rtol=1e-6)


@pytest.mark.parametrize(("call", "shape"), [("Conv", (5, 4, 3, 3)), ("ConvTranspose", (4, 5, 3, 3))])
def test_a_shift_behind_a_bias_that_is_no_constant(model_from_text, call, shape):
    """It is added to every place of its channel: the bias itself comes with the samples."""
    text = f"""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,4,6,6] x, float[{",".join(map(str, shape))}] w, float[5] b) => (float[N,5,H,W] y) {{
      y = {call}(x, w, b)
    }}"""
    net = normalise(load(model_from_text(text, w=array(*shape))))
    feeds = {"x": array(2, 4, 6, 6), "b": array(5)}
    plan = full_range_plan(net, feeds, activation_bits=None, shift=True)
    plain = plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))
    for lower in (simulate, export):
        shifted, base = (Session(lower(net, p)).run(feeds)["y"] for p in (plan, plain))
        np.testing.assert_allclose(shifted - base, np.linspace(-0.5, 0.5, 5).reshape(1, 5, 1, 1) + 0 * base, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv2d", "gemm", "matmul"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_single_scale_is_a_scalar_in_the_file(model_from_text, kind, per_channel):
    """Vectors of one number are for weights of one channel."""
    net, feeds = one_layer(model_from_text, kind)
    exported = export(net, full_range_plan(net, feeds, per_channel=per_channel))
    (weight,) = (n for n in exported.graph if n.op_type == "DequantizeLinear" and n.inputs[0].const_value is not None)
    scale, zero = (v.const_value.numpy() for v in weight.inputs[1:3])
    assert scale.shape == zero.shape == ((5,) if per_channel else ())
    assert ("axis" in weight.attributes) == per_channel


@pytest.mark.parametrize(
    ("codes", "low", "idle"), [(15, 0.0, True), (20, 0.0, True), (10, 0.0, False), (15, 0.1, False)]
)
def test_a_clip_is_left_out_where_the_codes_end_at_its_bound(model_from_text, codes, low, idle):
    text = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N,3,4,4] x, float[4,3,1,1] w, float low, float high) => (float[N,4,4,4] y) {
      c = Conv(x, w)  y = Clip(c, low, high) }"""
    ends = {"low": np.asarray(np.float32(low)), "high": np.asarray(np.float32(codes * 0.1))}
    net = normalise(load(model_from_text(text, w=array(4, 3, 1, 1), **ends)))
    (layer,) = GraphView(net).layers
    grids = (ActivationQuant(tensor="y", bits=4, scale=0.1), ActivationQuant(tensor="x", bits=8, scale=0.03))
    quant = LayerQuant(name=layer.name, op="Conv", weight=WeightQuant(bits=8, scale=(0.03,)))
    plan = QuantPlan(model=net.digest, recipe="test", layers=(quant,), activations=grids)
    exported = export(net, plan)
    assert ("Relu" in {node.op_type for node in exported.graph}) == idle
    feeds = {"x": np.abs(array(2, 3, 4, 4))}
    floats, found = (Session(model, optimize=False).run(feeds)["y"] for model in (simulate(net, plan), exported))
    assert np.mean(np.abs(floats - found) > 1e-4) < 0.02
