"""Rows of tables that samples read often get more bits, and the file holds them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import qgraph
from qgraph.graph.sites import GraphView
from qgraph.methods.tables.lookups import lookups
from qgraph.onnxfile.load import load
from qgraph.onnxfile.opset import prepare
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data
from tests.corpus.transformers import encoder, sentences

RNG = np.random.default_rng(2)


def words(count: int) -> dict[str, np.ndarray]:
    """Sentences in which some words are far more frequent than others."""
    fed = sentences(count)
    rank = RNG.zipf(1.6, size=fed["ids"].shape)
    return {**fed, "ids": np.minimum(rank, 119).astype(fed["ids"].dtype)}


def test_lookups_are_counted_where_indices_are_computed():
    table = ", ".join(f"{v:.3f}" for v in RNG.normal(size=600))
    net = prepare(
        ir.from_onnx_text(
            f"""<ir_version: 8, opset_import: ["": 17]> g (int64[N, 3] x) => (float[N, 3, 40] y)
            <float[15, 40] t = {{{table}}}, int64 one = {{1}}> {{ i = Sub(x, one) y = Gather(t, i) }}"""
        )
    )
    view = GraphView(net)
    data = open_data(np.array([[0, 1, 2], [2, 2, 14]], np.int64), net)
    (found,) = lookups(view, view.weight_only, data).values()
    expected = np.zeros(15, int)
    expected[[14, 0, 1, 13]] = 1, 1, 3, 1
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("activations", ["dynamic", None])
def test_frequent_rows_have_more_bits_and_less_error(activations):
    model = encoder()
    options = {"weights": 4, "activations": activations, "measure": False}
    with_, without = (
        qgraph.quantize(model, words(32), allocate_bits=allocate, **options) for allocate in (None, "none")
    )
    table = with_.plan.layer("words")
    assert table is not None
    widths = np.array(table.weight.channel_bits)
    counts = np.bincount(words(32)["ids"].ravel(), minlength=120)
    assert widths[counts.argmax()] == widths.max() > 4
    assert 4 < widths.mean() <= 4.25
    assert not without.plan.layer("words").weight.channel_bits
    fed = words(16)
    (want,) = Session(load(model).ir_model).run_list(fed)
    errors = [np.square(Session(r.model).run_list(fed)[0] - want).mean() for r in (with_, without)]
    assert errors[0] < errors[1]
    plan = qgraph.QuantPlan.from_json(with_.plan.to_json())
    assert plan == with_.plan
    again = qgraph.apply(model, plan)
    np.testing.assert_array_equal(Session(again.ir_model).run_list(fed)[0], Session(with_.model).run_list(fed)[0])


def test_distilled_or_missing_samples_tell_nothing_of_words():
    result = qgraph.quantize(encoder(), weights=4, activations=None, measure=False)
    assert not any(layer.weight.channel_bits for layer in result.plan.layers)
