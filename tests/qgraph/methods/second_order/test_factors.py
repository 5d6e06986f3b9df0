"""Rounding a weight whose operand is divided by factors of its channels, some of which are multiplied apart."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import pytest

from qgraph.graph.sites import GraphView
from qgraph.lowering.lower import lower
from qgraph.methods.second_order.round import SecondOrderConfig, round_weights
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan import codes
from qgraph.plan.grids import initial_plan, spanned
from qgraph.plan.request import choose_recipe
from qgraph.running.job import Job
from qgraph.running.sessions import Session
from qgraph.samples.dataset import open_data

RNG = np.random.default_rng(7)
FACTORS = (0.5, 2.0, 0.0, 1.0, 4.0, 0.0, 0.25, 1.0, 3.0, 1.0)


@pytest.mark.parametrize("factors", [FACTORS, tuple(f or 1.5 for f in FACTORS), ()], ids=["apart", "all", "none"])
@pytest.mark.parametrize("call", ["MatMul(x, w)", "Gemm<transB=1>(x, w)"])
def test_codes_make_up_for_the_errors_before_them(model_from_text, call, factors):
    """The closed form without a grid bounds what is left; columns without a factor keep their float weights."""
    transposed = "transB" in call
    weight = RNG.normal(size=(10, 8)).astype(np.float32)
    held = np.ascontiguousarray(weight.T) if transposed else weight
    sizes = ",".join(map(str, held.shape))
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[N,10] x, float[{sizes}] w) => (float[N,8] y) {{ [layer] y = {call} }}"""
    net = normalise(load(model_from_text(text, w=held)))
    view = GraphView(net)
    x = (RNG.normal(size=(400, 10)) @ RNG.normal(size=(10, 10)) + 1).astype(np.float32)
    recipe = choose_recipe("aciq", True, weights=3, edge_bits=3, activations="dynamic", group="none", symmetric=True)
    plan = initial_plan(view, recipe, None)
    (start,) = plan.layers
    grid = dataclasses.replace(start.weight, input_scale=factors)
    plan = plan.map_layers(lambda q: dataclasses.replace(q, weight=spanned(held, grid)))
    seen: list[str] = []
    better = round_weights(
        plan, view, open_data(x, net), config=SecondOrderConfig(batch=50), job=Job(progress=Counted(seen))
    )
    (quant,) = better.layers
    assert quant.weight.input_scale == factors
    want = Session(net.ir_model).run({"x": x})["y"]
    errors = [Session(lower(net, p, format="float")).run({"x": x})["y"] - want for p in (plan, better)]
    assert np.square(errors[1]).mean() < 0.6 * np.square(errors[0]).mean()
    assert np.abs(errors[1].mean(axis=0)).max() < 0.05 * np.sqrt(np.square(errors[0]).mean())
    assert seen == ["rounding 1", "1 layer"]
    apart = np.flatnonzero(np.asarray(factors) == 0)
    rounded = codes.quantized(held, quant.weight)
    np.testing.assert_array_equal((rounded.T if transposed else rounded)[apart], weight[apart])
    file = Session(lower(net, better, format="qdq")).run({"x": x})["y"]
    assert np.square(file - want).mean() < 1.1 * np.square(errors[1]).mean() + 1e-3


class Counted:
    """Writes down the stages and their steps."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def stage(self, title: str, total: int | None = None, *, pieces: int = 1):
        self.seen.append(f"{title} {total}")
        return nullcontext(lambda units, note="": self.seen.append(f"{units} {note}"))
