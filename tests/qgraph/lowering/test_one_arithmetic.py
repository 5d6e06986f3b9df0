"""What NumPy says a grid makes of numbers is what both graphs compute, whatever field of the grid is set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qgraph.assess.layer_errors import grid_error
from qgraph.errors import PlanError
from qgraph.graph.sites import GraphView
from qgraph.lowering.export import export
from qgraph.lowering.simulate import FloatEmitter, simulate
from qgraph.methods.aciq.clip import clip_weights
from qgraph.methods.aciq.corrections import correct_norm
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes as weights
from qgraph.plan.grids import weight_grid
from qgraph.plan.plan import ActivationQuant, LayerQuant, QuantPlan, Rounding, WeightQuant
from qgraph.plan.saturation import without_saturation
from qgraph.plan.staircase import on_grid
from qgraph.running.sessions import Session
from qmath import Granularity, Statistics

CONV = """
<ir_version: 10, opset_import: ["": 17]>
net (float[N, 6, 1, 1] x, float[5, 6, 1, 1] w) => (float[N, 5, 1, 1] y) { y = Conv (x, w) }
"""
CURVED = Rounding(gamma_n=-0.7, gamma_s=0.25)
ACTIVATIONS = {
    "tensor": {},
    "role": {"role": "operand"},
    "bits": {"bits": 2},
    "scale": {"scale": 0.0625},
    "zero_point": {"zero_point": 5},
    "offset": {"offset": -0.3, "zero_point": 2},
    "symmetric": {"symmetric": True, "zero_point": 7},
    "rounding": {"rounding": CURVED},
    "channel_scale": {"channel_scale": (0.5, 1.0, 2.0, 0.7, 1.3, 0.9), "zero_point": 3},
    "channel_bits": {"channel_scale": (0.5, 1.0, 2.0, 0.7, 1.3, 0.9), "channel_bits": (2, 3, 4, 5, 6, 2)},
}
MORE_ACTIVATIONS = [
    {"rounding": dataclasses.replace(CURVED, subdivision=16)},
    {"rounding": CURVED, "symmetric": True, "zero_point": 7},
    {"offset": 0.4, "symmetric": True, "zero_point": 7},
    {"bits": 8, "scale": 0.013, "zero_point": 131},
]
CHANNELS = Granularity(axis=0)
SCALES = (0.3, 0.11, 0.2, 0.15, 0.07)
WEIGHTS = {
    "bits": {"bits": 2},
    "scale": {"scale": (0.05,)},
    "zero_point": {"zero_point": (-3,), "symmetric": False},
    "gain": {"gain": (1.0, 1.1, 0.9, 1.05, 0.97), "scale": SCALES, "granularity": CHANNELS},
    "granularity": {"scale": SCALES, "granularity": CHANNELS},
    "symmetric": {"symmetric": False, "zero_point": (1, -3, 0, 2, 5), "scale": SCALES, "granularity": CHANNELS},
    "rounding": {"rounding": CURVED, "scale": SCALES, "granularity": CHANNELS},
    "channel_bits": {"channel_bits": (2, 3, 4, 5, 8), "scale": SCALES, "granularity": CHANNELS},
    "input_scale": {"input_scale": (0.5, 1.0, 2.0, 0.7, 1.3, 0.9), "scale": SCALES, "granularity": CHANNELS},
}


@pytest.fixture
def net(model_from_text):
    w = np.random.default_rng(0).normal(size=(5, 6, 1, 1)).astype(np.float32)
    w[0, 0] = 0
    return normalise(load(model_from_text(CONV, w=w)))


def grids(kind, fields, more=()):
    """The grids that a table of fields makes; a field that is not in the table fails."""
    # tested beside what sets them
    elsewhere = {"unit", "codes", "even", "input_mean", "input_spread", "shift", "fitted"}
    assert set(fields) == {field.name for field in dataclasses.fields(kind)} - elsewhere
    given = {"tensor": "x", "bits": 4, "scale": 0.3} if kind is ActivationQuant else {"bits": 4, "scale": (0.3,)}
    return [pytest.param(kind(**given | change), id=f"{name}") for name, change in [*fields.items(), *enumerate(more)]]


@pytest.mark.parametrize("quant", grids(ActivationQuant, ACTIVATIONS, MORE_ACTIVATIONS))
def test_activations_lie_where_the_graphs_put_them(net, quant):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 6, 1, 1), scale=2).astype(np.float32)
    ties = (np.arange(-40, 60) / 2 * np.float32(quant.scale) + np.float32(quant.offset)).astype(np.float32)
    x[:100, 0, 0, 0] = ties  # between two codes, where the type of the arithmetic shows
    expected = on_grid(x, quant)
    graph = net.ir_model.clone()
    graph.graph.outputs[:] = [FloatEmitter(graph.graph).activation(graph.graph.inputs[0], quant)]
    (produced,) = Session(graph).run_list({"x": x})
    np.testing.assert_array_equal(produced, expected)
    assert expected.dtype == np.float32
    if not quant.channel_scale:
        levels = np.unique(on_grid(np.linspace(-9, 9, 4001, dtype=np.float32), quant))
        assert levels.size <= quant.qmax + 1
        np.testing.assert_allclose(levels, np.round((levels - quant.offset) / quant.scale) * quant.scale + quant.offset)


@pytest.mark.parametrize("quant", grids(WeightQuant, WEIGHTS))
@pytest.mark.parametrize("operand", [True, False])
def test_weights_are_what_the_graphs_multiply(net, quant, operand):
    node = next(iter(net.graph))
    w = node.inputs[1].const_value.numpy()
    layer = LayerQuant(name=str(node.name), op="Conv", weight=quant)
    activations = (ActivationQuant(tensor="x", bits=8, scale=1.0),) if operand else ()
    plan = QuantPlan(model=net.digest, recipe="minmax", layers=(layer,), activations=activations)
    unit = np.eye(6, dtype=np.float32).reshape(6, 6, 1, 1)
    expected = weights.quantized(w, quant)
    np.testing.assert_array_equal(Session(simulate(net, plan)).run({"x": unit})["y"][..., 0, 0].T, expected[..., 0, 0])
    if not quant.input_scale:  # whose factors a deployed file holds on the other side too
        deployed = Session(export(net, plan)).run({"x": unit})["y"]
        np.testing.assert_allclose(deployed[..., 0, 0].T, expected[..., 0, 0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("quant", grids(WeightQuant, WEIGHTS))
def test_codes_and_values_follow_the_equation(net, quant):
    w = next(iter(net.graph)).inputs[1].const_value.numpy()
    along = [np.reshape(part, (-1, 1, 1, 1)) for part in (quant.scale, quant.zero_point, quant.gain)]
    scale, zero_point, gain = (part.astype(np.float32) for part in along)
    factors = np.reshape(quant.input_scale or 1.0, (1, -1, 1, 1)).astype(np.float32)
    low, high = (np.reshape(end, (-1, 1, 1, 1)) for end in zip(*quant.limits, strict=True))
    found = weights.codes(w, quant)
    assert found.dtype == np.int8
    if quant.rounding is None:
        np.testing.assert_array_equal(found, np.clip(np.rint(w * factors / scale) + zero_point, low, high))
    np.testing.assert_array_equal(found, np.clip(found, low, high))
    np.testing.assert_allclose(weights.values(found, quant), (found - zero_point) * scale * gain, rtol=1e-6)
    np.testing.assert_allclose(weights.quantized(w, quant), (found - zero_point) * scale * gain / factors, rtol=1e-6)


def test_the_error_of_a_grid_is_that_of_its_arithmetic():
    """Also of a grid with an offset, which no level of the plain grid stands for."""
    x = np.random.default_rng(2).normal(size=200_000).astype(np.float32)
    for quant in (
        ActivationQuant(tensor="x", bits=4, scale=0.3, zero_point=7, offset=0.11),
        ActivationQuant(tensor="x", bits=4, scale=0.5, zero_point=7, symmetric=True, rounding=CURVED),
    ):
        measured = np.mean((on_grid(x, quant) - x.astype(np.float64)) ** 2)
        assert grid_error(Statistics.of(x), quant) == pytest.approx(measured, rel=0.01)


def test_grids_that_do_not_fit_a_weight_are_refused():
    w = np.ones((5, 6, 1, 1), np.float32)
    with pytest.raises(
        PlanError, match=r"3 scales per channel along axis 0 does not fit a weight of shape \[5, 6, 1, 1\]"
    ):
        weights.codes(w, WeightQuant(bits=4, scale=(0.1, 0.2, 0.3), granularity=CHANNELS))
    with pytest.raises(PlanError, match="does not fit a weight"):
        weights.codes(w, WeightQuant(bits=4, scale=(0.1, 0.2), granularity=Granularity(axis=9)))


GROUPED = {
    "Gemm": "net (float[N, 10] x, float[10, 3] w) => (float[N, 3] y) { y = Gemm (x, w) }",
    "transposed Gemm": "net (float[N, 10] x, float[3, 10] w) => (float[N, 3] y) { y = Gemm<transB = 1> (x, w) }",
    "MatMul": "net (float[N, 10] x, float[10, 3] w) => (float[N, 3] y) { y = MatMul (x, w) }",
}


@pytest.fixture(params=GROUPED)
def grouped(request, model_from_text):
    """A product whose weight has a scale per 4 inputs (the last of them 2) of every output, and its plan."""
    shape = (3, 10) if request.param == "transposed Gemm" else (10, 3)
    w = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    net = normalise(load(model_from_text('<ir_version: 10, opset_import: ["": 17]>\n' + GROUPED[request.param], w=w)))
    granularity = Granularity(axis=1 if shape[0] == 3 else 0, group=4)
    low, high = (granularity.reduce(end, w) for end in (np.minimum, np.maximum))
    assert low.size == 9
    grid = weight_grid(low, high, bits=3, granularity=granularity, symmetric=False)
    grid = dataclasses.replace(grid, gain=tuple(np.linspace(0.9, 1.1, 9)))
    layer = LayerQuant(name=str(next(iter(net.graph)).name), op=request.param.split()[-1], weight=grid)
    return net, w, QuantPlan(model=net.digest, recipe="minmax", layers=(layer,))


@pytest.mark.parametrize("rounding", [None, CURVED])
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_have_their_own_codes_and_values(grouped, symmetric, rounding):
    net, w, plan = grouped
    quant = plan.layers[0].weight
    if symmetric:
        quant = dataclasses.replace(quant, symmetric=True, zero_point=(0,), rounding=rounding)
    elif rounding is not None:
        return
    axis = quant.granularity.axis
    codes, values = weights.codes(w, quant), weights.quantized(w, quant)
    for output in range(3):
        for number, start in enumerate((0, 4, 8)):
            part = (output, slice(start, start + 4)) if axis else (slice(start, start + 4), output)
            index = output * 3 + number if axis else number * 3 + output
            zero_point = 0 if symmetric else quant.zero_point[index]
            alone = WeightQuant(
                bits=3,
                scale=(quant.scale[index],),
                gain=(quant.gain[index],),
                zero_point=(zero_point,),
                symmetric=symmetric,
                rounding=quant.rounding,
            )
            np.testing.assert_array_equal(codes[part], weights.codes(w[part], alone))
            np.testing.assert_array_equal(values[part], weights.quantized(w[part], alone))
    changed = plan.map_layers(lambda layer: dataclasses.replace(layer, weight=quant))
    unit = np.eye(10, dtype=np.float32)
    produced = Session(simulate(net, changed)).run({"x": unit})["y"]
    np.testing.assert_array_equal(produced, values.T if axis else values)
    assert QuantPlan.from_json(changed.to_json()) == changed


def test_groups_without_units_are_not_written(grouped):
    net, _, plan = grouped
    with pytest.raises(PlanError, match=r"has a scale per group of 4 along axis \d, and no unit per channel"):
        export(net, plan)


def test_methods_take_groups_as_they_take_channels(grouped):
    """Clipping and the correction of norms work on what shares a scale."""
    net, w, plan = grouped
    view = GraphView(net)
    clipped = correct_norm(clip_weights(plan, view, method="mse"), view)
    quant = clipped.layers[0].weight
    assert quant.granularity == plan.layers[0].weight.granularity
    assert len(quant.scale) == len(quant.gain) == 9
    before, after = (np.mean((weights.quantized(w, p.layers[0].weight) - w) ** 2) for p in (plan, clipped))
    assert after < before
    spans = [np.std(quant.granularity.rows(part), axis=1) for part in (w, weights.quantized(w, quant))]
    np.testing.assert_allclose(*spans, rtol=1e-5)
    assert without_saturation(clipped, view) == clipped
