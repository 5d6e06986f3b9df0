"""What is measured of layers in the file, against the file's own codes; and that looking does not change what runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.assess.layers_in_file import _exposed, layers_in_file
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data


@pytest.fixture(scope="module")
def result(digits, digits_calibration):
    return qgraph.quantize(digits, digits_calibration, limit=80, weights=4, activations=4)


def test_the_errors_are_those_of_the_codes_in_the_file(result):
    """The last layer but one, by hand: its codes in the optimised file, against the float tensor."""
    samples = result.trial.samples
    view = GraphView(result.net)
    found = layers_in_file(view, result.plan, result.model, samples)
    assert set(found) == {quant.name for quant in result.plan.layers}
    tensor = found["reduce/conv"].tensor
    floats = Session(result.net.ir_model, outputs=[tensor])
    values = ir.convenience.create_value_mapping(result.model.graph)
    quantizer = next(use.node for use in values[tensor].uses())
    codes = Session(result.model, outputs=[str(quantizer.outputs[0].name)])
    scale = quantizer.inputs[1].const_value.numpy()
    highest = next(a.qmax for a in result.plan.activations if a.tensor == tensor)
    want, have = [], []
    for batch in samples.batches(1):
        want.append(floats.run_list(batch.feeds)[0])
        have.append(np.minimum(codes.run_list(batch.feeds)[0], highest) * scale)
    signal = np.mean(np.square(want))
    noise = np.mean(np.square(np.array(have) - np.array(want)))
    assert 10 * np.log10(found["reduce/conv"].signal / found["reduce/conv"].noise) == pytest.approx(
        10 * np.log10(signal / noise), abs=0.3
    )
    assert found["reduce/conv"].high == pytest.approx(np.max(want))


def test_the_last_layer_is_as_far_off_as_the_output(result):
    last = next(layer for layer in result.layers if layer.name == "classifier")
    assert last.measured_sqnr_db == pytest.approx(result.quality.outputs[0].sqnr_db, abs=0.1)
    assert last.simulated_sqnr_db > last.measured_sqnr_db + 3, "alone it is better than behind all others"


def test_predictions_without_simulation_are_relative_to_the_float_layers_of_the_file(result):
    for with_it, without in zip(result.layers, result.layers_unsimulated, strict=True):
        assert without.simulated_sqnr_db is None
        assert without.measured_sqnr_db == with_it.measured_sqnr_db
        assert without.predicted_sqnr_db == pytest.approx(with_it.predicted_sqnr_db, abs=1.0)


def test_looking_leaves_the_integer_kernels(result):
    tensors = {found.tensor for found in result.layers_in_file.values()}
    probe, seen = _exposed(result.model, tensors)
    assert set(seen) == tensors
    assert all(name.endswith("/seen") for tensor, name in seen.items() if tensor != "logits")
    probe.graph.outputs.extend(
        v
        for v in ir.convenience.create_value_mapping(probe.graph).values()
        if v.name in set(seen.values()) - {"logits"}
    )
    before = inspect_fused(Model(ir_model=result.model, source="", nbytes=0))
    after = inspect_fused(Model(ir_model=probe, source="", nbytes=0))
    assert [layer.kernel for layer in after.layers] == [layer.kernel for layer in before.layers]
    assert all(layer.integer for layer in after.layers)


def test_steps_per_channel_are_those_of_the_float_tensor(digits, digits_calibration):
    """With factors of channels in the weights, the file's tensor is another; what is measured is brought back."""
    scaled = qgraph.quantize(digits, digits_calibration, limit=80, activations=4, allocate_bits="activations")
    assert any(a.channel_scale for a in scaled.plan.activations)
    assert min(layer.measured_sqnr_db for layer in scaled.layers) > 5


def test_nothing_is_measured_where_it_was_not_asked_for(digits, digits_calibration):
    plain = qgraph.quantize(digits, digits_calibration, limit=40, measure=False)
    assert all(layer.measured_sqnr_db is None and layer.simulated_sqnr_db for layer in plain.layers)


def test_a_network_of_one_batch_size(model_from_text):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[4, 3] x) => (float[4, 2] y) <float[3, 2] w> { y = MatMul(x, w) }
    """
    rng = np.random.default_rng(0)
    model = model_from_text(text, w=rng.normal(size=(3, 2)).astype(np.float32))
    result = qgraph.quantize(model, rng.normal(size=(30, 3)).astype(np.float32))
    (layer,) = result.layers
    assert layer.measured_sqnr_db > 25
    assert open_data(rng.normal(size=(3, 3)).astype(np.float32), result.net).count == 3
