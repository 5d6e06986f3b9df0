"""Products with blocks of packed codes: what onnxruntime makes of them, and that they compute what the plan says."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.errors import PlanError, UsageError
from qgraph.jobs import no_slower
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.opset import prepare
from qgraph.plan.plan import QuantPlan
from qgraph.running.sessions import Session
from tests.corpus.transformers import decoder, steps

RNG = np.random.default_rng(3)


def network(opset: int = 17) -> Model:
    """A MatMul, a Gemm with its weight transposed, and inputs that do not fill their last block."""
    shapes = {"a": (72, 48), "b": (40, 48), "c": (40, 64)}
    weights = [
        f"float[{', '.join(map(str, s))}] {n} = {{{', '.join(f'{v:.4f}' for v in RNG.laplace(size=s).ravel())}}}"
        for n, s in shapes.items()
    ]
    bias = ", ".join(f"{v:.4f}" for v in RNG.normal(size=40))
    return prepare(
        ir.from_onnx_text(
            f"""<ir_version: 8, opset_import: ["": {opset}]> g (float[N, 72] x) => (float[N, 64] z)
            <{", ".join(weights)}, float[40] v = {{{bias}}}>
            {{ h = MatMul(x, a) k = Gemm<transB = 1>(h, b, v) z = MatMul(k, c) }}"""
        )
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_become_one_kernel_and_compute_the_plan(bits, symmetric):
    net = network()
    options = {"weights": bits, "edge_bits": bits, "group": 16, "symmetric": symmetric, "measure": False}
    result = qgraph.quantize(net.ir_model, target="decode", **options)
    assert [layer.runs for layer in result.plan.layers] == ["blocks"] * 3
    kernels = [layer.kernel for layer in inspect_fused(load(ir.to_proto(result.model))).layers]
    assert kernels == ["MatMulNBits"] * 3
    x = {"x": RNG.normal(size=(5, 72)).astype(np.float32)}
    (have,) = Session(result.model).run_list(x)
    simulated = qgraph.quantize(net.ir_model, target="decode", format="float", **options)
    (wanted,) = Session(simulated.model).run_list(x)
    assert np.square(have - wanted).mean() < 4e-4 * np.square(wanted).mean()  # the kernel rounds its operand to 8 bits
    (want,) = Session(net.ir_model).run_list(x)
    assert np.square(have - want).mean() < (0.05 if bits == 4 else 1e-3) * np.square(want).mean()


def test_codes_are_packed_and_plans_apply_again():
    model = decoder()
    result = qgraph.quantize(model, steps(8), weights=4, edge_bits=4, group=16, target="decode", guard="off")
    assert {layer.runs for layer in result.plan.layers if layer.op == "MatMul"} == {"blocks"}
    kinds = [v.const_value.dtype for v in result.model.graph.initializers.values()]
    assert kinds.count(ir.DataType.UINT4) >= 2 * 6  # the codes and zero points of every product
    assert result.model.graph.opset_imports[""] == 21
    again = qgraph.apply(model, QuantPlan.from_json(result.plan.to_json()))
    fed = steps(1, seed=9)
    for a, b in zip(Session(again.ir_model).run_list(fed), Session(result.model).run_list(fed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_bits_and_shared_weights_do_not_run_in_blocks():
    result = qgraph.quantize(network().ir_model, weights=3, target="decode", measure=False)
    assert {layer.weight.bits: layer.runs for layer in result.plan.layers} == {8: "blocks", 3: "integers"}
    tied = qgraph.quantize(decoder(), weights=8, target="decode", measure=False)
    assert {layer.name: layer.runs for layer in tied.plan.layers}["head"] != "blocks"


def test_what_the_kernel_cannot_do_is_refused():
    for options in ({"activations": 8}, {"group": "none"}, {"per_channel": False}):
        with pytest.raises(UsageError, match="multiplies floats with blocks of codes"):
            qgraph.quantize(network().ir_model, target="decode", **options)
    net = network()
    result = qgraph.quantize(net.ir_model, weights=3, edge_bits=3, activations=None, measure=False)
    plan = result.plan.map_layers(lambda layer: dataclasses.replace(layer, runs="blocks"))
    with pytest.raises(PlanError, match="cannot run in blocks"):
        qgraph.apply(net.ir_model, plan, measure=False)
    fine = qgraph.quantize(net.ir_model, weights=4, target="decode", measure=False)
    with pytest.raises(PlanError, match="runs in blocks, which need opset 21"):
        qgraph.apply(net.ir_model, fine.plan, opset=17, measure=False)


def test_blocks_that_measure_slower_than_floats_are_given_up(monkeypatch):
    """Here everything counts as slow, and floats as faster: the choice and its reason are in the plan."""
    fed = {"x": RNG.normal(size=(4, 72)).astype(np.float32)}
    made = qgraph.quantize(network().ir_model, fed, weights=4, target="decode", guard="off")
    quality = made.quality
    assert quality is not None
    seconds = {"blocks": 1.5, "floats": 1.0}
    timed = property(lambda r: dataclasses.replace(quality, latency=seconds[r.plan.layers[0].runs], float_seconds=1.0))
    monkeypatch.setattr(type(made), "quality", timed)
    monkeypatch.setattr(no_slower, "SLOWER", 1.02)
    chosen = no_slower.no_slower(made, fixed=False)
    assert {layer.runs for layer in chosen.plan.layers} == {"floats"}
    assert any("blocks of codes take 1.50" in note for note in chosen.plan.notes)
