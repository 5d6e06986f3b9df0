"""A network laid open: its arrays are those of the graph, and other weights give what a graph with them computes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.errors import ModelError, UsageError
from qgraph.running.sessions import Session


@pytest.fixture(scope="module")
def net(digits, digits_calibration):
    return qgraph.probe(digits, digits_calibration, limit=40, threads=1)


def halved(net, name):
    """The network with one weight halved, in a graph of its own."""
    model = net.net.ir_model.clone()
    stored = model.graph.initializers[net.view.by_name[name].weight.name]
    stored.const_value = ir.tensor(stored.const_value.numpy() / 2)
    return model


def test_the_arrays_are_those_of_the_graph(net):
    images = net.tensor("input")
    assert images.shape == (net.samples, 1, 8, 8) == (40, 1, 8, 8)
    layer = net.layers["reduce/conv"]
    expected = Session(net.net.ir_model, outputs=[layer.tensor]).run({"input": images})[layer.tensor]
    np.testing.assert_allclose(layer.operand, expected, rtol=1e-5, atol=1e-6)
    assert layer.operand.shape[layer.operand_axis] == layer.weight.shape[1] == 32
    assert layer.weight.shape[layer.axis] == 96
    assert layer.non_negative
    assert not net.layers["stem/conv"].non_negative


@pytest.mark.parametrize("name", ["stem/conv", "separable/first/conv", "classifier"])
def test_other_weights_give_what_a_graph_with_them_computes(net, name):
    changed = {name: net.layers[name].weight / 2}
    expected = Session(halved(net, name)).run({"input": net.tensor("input")})["logits"]
    np.testing.assert_allclose(net.outputs(changed)["logits"], expected, rtol=1e-4, atol=1e-4)
    assert net.distance(changed) > 1e6 * net.distance()
    np.testing.assert_allclose(net.outputs()["logits"], net.tensor("logits"), rtol=1e-4, atol=1e-4)


def test_the_distance_is_the_divergence_of_an_evaluation(net, digits, digits_calibration):
    name = "residual/first/conv"
    model = halved(net, name)
    expected = qgraph.evaluate(model, digits_calibration, against=digits, limit=40)
    assert net.distance({name: net.layers[name].weight / 2}) == pytest.approx(expected.kl, rel=1e-4)


@pytest.mark.parametrize("weights", [{"nowhere": np.zeros((1, 1))}, {"classifier": np.zeros((96, 10))}])
def test_weights_that_do_not_fit(net, weights):
    with pytest.raises(UsageError, match="do not fit the network"):
        net.distance(weights)


def test_samples_are_distilled_where_none_are_given(digits):
    assert qgraph.probe(digits, limit=4).tensor("input").shape == (4, 1, 8, 8)


def test_a_network_without_layers():
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }'
    with pytest.raises(ModelError, match="no layer to quantize"):
        qgraph.probe(ir.to_proto(ir.from_onnx_text(text)), np.ones((2, 4), np.float32))


def test_a_layer_says_what_it_is_in_a_line(net):
    assert repr(net.layers["classifier"]) == "ProbedLayer(classifier: Gemm, weight (10, 96), reads flatten:0)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.layers["classifier"].name = "other"
