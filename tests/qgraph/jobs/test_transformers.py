"""Transformers from end to end: small ones with planted outliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.onnxfile.load import load
from qgraph.running.sessions import Session
from tests.corpus.more_transformers import conformer, pictures, sounds, vision
from tests.corpus.transformers import decoder, encoder, sentences, steps

NETWORKS = {"encoder": (encoder, sentences), "decoder": (decoder, steps), "vision": (vision, pictures)}


def worst_db(float_model: onnx.ModelProto, model: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    want, have = Session(load(float_model).ir_model).run_list(feeds), Session(model).run_list(feeds)
    pairs = zip(want, have, strict=True)
    return min(float(10 * np.log10(np.square(a).sum() / np.square(a - b, dtype=np.float64).sum())) for a, b in pairs)


@pytest.fixture(params=NETWORKS)
def network(request: Any) -> tuple[onnx.ModelProto, Callable[..., dict[str, np.ndarray]]]:
    make, samples = NETWORKS[request.param]
    return make(), samples


def test_eight_bits_keep_35_db_on_integers(network: Any) -> None:
    model, samples = network
    result = qgraph.quantize(model, samples(24), guard="off")
    assert worst_db(model, result.model, samples(16, seed=9)) > 35
    kinds = {"Conv": "integers", "Gather": "floats"}
    assert all(layer.runs == kinds.get(layer.op, "dynamic") for layer in result.plan.layers)
    fused = inspect_fused(load(ir.to_proto(result.model)))
    names = {layer.name for layer in result.plan.layers if layer.runs == "dynamic"}
    assert names <= {layer.name for layer in fused.layers if layer.integer}
    assert any("measured better than static grids" in note for note in result.plan.notes)


def test_a_conformer_keeps_35_db_where_the_guard_may_give_up_what_hurts() -> None:
    """Convolutions on static grids beside dynamic products; one shape of sound serves for another."""
    model = conformer()
    result = qgraph.quantize(model, sounds(24), guard=35)
    for time in (24, 40):
        assert worst_db(model, result.model, sounds(16, time, seed=9)) > 35
    runs = [layer.runs for layer in result.plan.layers]
    assert runs.count("dynamic") + runs.count("integers") > runs.count("floats")
    assert "dynamic" in runs
    assert "integers" in runs


def test_static_grids_where_the_caller_says_so(network: Any) -> None:
    model, samples = network
    result = qgraph.quantize(model, samples(8), activations=8, guard="off", measure=False)
    assert not any(layer.runs == "dynamic" for layer in result.plan.layers)
    assert result.plan.activations


def test_dynamic_without_data(network: Any) -> None:
    model, samples = network
    result = qgraph.quantize(model, measure=False)
    assert result.data == "none"
    assert worst_db(model, result.model, samples(16, seed=9)) > 20


def test_interface_and_caches_stay(network: Any) -> None:
    model, samples = network
    result = qgraph.quantize(model, samples(8), weights=4, guard="off", measure=False)
    written = ir.to_proto(result.model)
    for side in ("input", "output"):
        for before, after in zip(getattr(model.graph, side), getattr(written.graph, side), strict=True):
            assert before == after
    longer = samples(2, 9)
    assert all(np.isfinite(a).all() for a in Session(result.model).run_list(longer))


def test_moving_outliers_is_measured() -> None:
    model = encoder()
    with_, without = (
        qgraph.quantize(model, sentences(24), activations="dynamic", balance=balance, guard="off", measure=False)
        for balance in (True, False)
    )
    assert any(0 in layer.weight.input_scale or layer.weight.input_scale for layer in with_.plan.layers)
    fed = sentences(16, seed=9)
    assert worst_db(model, with_.model, fed) > worst_db(model, without.model, fed)


def test_tables_are_stored_in_few_bits() -> None:
    model = encoder()
    for bits in (8, 5, 4):
        result = qgraph.quantize(model, weights=bits, activations=None, measure=False)
        table = next(layer for layer in result.layers if layer.name == "words")
        assert (table.op, table.weight_bits, table.runs) == ("Gather", bits, "floats")
        assert table.weight_bytes == bits * 120 * 32 // 8
        simulated = qgraph.quantize(model, weights=bits, activations=None, format="float", measure=False).model
        fed = sentences(4)
        for want, have in zip(Session(simulated).run_list(fed), Session(result.model).run_list(fed), strict=True):
            np.testing.assert_allclose(have, want, atol=1e-4)


def test_tables_can_stay_float() -> None:
    result = qgraph.quantize(encoder(), activations=None, keep=("words",), measure=False)
    assert "words" not in {layer.name for layer in result.plan.layers}
    assert any(kept.name == "words" and kept.bytes == 120 * 32 * 4 for kept in result.plan.kept_float)


@pytest.mark.parametrize("activations", ["dynamic", None])
def test_a_table_that_writes_too_is_stored_once(activations: str | None) -> None:
    result = qgraph.quantize(decoder(), weights=8, activations=activations, measure=False)
    sizes = [value.const_value.nbytes for value in result.model.graph.initializers.values()]
    assert sum(size >= 120 * 32 for size in sizes) == 1
