"""The candidates of a search: which clips and roundings a grid may have, and what their points stand for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from qgraph.errors import UsageError
from qgraph.graph.sites import GraphView
from qgraph.methods.qrater.bench import Bench, Candidate, Samples
from qgraph.methods.qrater.config import SearchConfig
from qgraph.methods.qrater.cost import Cost, own_shares, shares
from qgraph.methods.qrater.space import (
    can_clip,
    can_round,
    clip_stage,
    positive,
    round_stage,
    subdivision,
    weight_limits,
)
from qgraph.methods.qrater.tensors import Tensors
from qgraph.onnxfile.load import load
from qgraph.onnxfile.normalise import normalise
from qgraph.plan.plan import ActivationQuant, Rounding, WeightQuant
from qgraph.samples.dataset import Batch
from qmath import Granularity

RNG = np.random.default_rng(2)
WEIGHT = WeightQuant(bits=4, scale=(1.0, 1.0), granularity=Granularity(axis=0), gain=(1.1, 0.9))


def operand(**fields):
    return ActivationQuant(**{"tensor": "x", "bits": 4, "scale": 1.0} | fields)


@pytest.mark.parametrize(
    ("fields", "below", "above"),
    [
        ({}, 5.0, 3.0),
        ({"zero_point": 15}, 5.0, 3.0),
        ({"symmetric": True, "zero_point": 7}, 5.0, 3.0),
        ({"zero_point": 5}, 5.0, 3.0),
        ({"zero_point": 12}, 5.0, 3.0),
        ({"zero_point": 5}, 1.0, 3.0),
        ({"zero_point": 5}, 0.0, 3.0),
        ({"zero_point": 5}, 5.0, -1.0),
    ],
)
def test_a_share_of_the_limit_clips_neither_side(fields, below, above):
    """The range that gamma_c = 1 gives reaches the farther side of every batch on average, and no farther."""
    grid = operand(**fields)
    batches = [np.array([[-below * f, above * f]], np.float32) for f in (1.0, 3.0)]
    tensors = Tensors(10**6)
    for index, array in enumerate(batches):
        tensors.put("x", index, array)
    counted = tuple(Batch(feeds={}, labels=None, count=1) for _ in batches)
    samples = Samples(batches=counted, reference=(), scorer=None, digest="")
    bench = SimpleNamespace(stand=SimpleNamespace(samples=samples, source="x", tensors=tensors))
    bench._source = lambda batch: Bench._source(bench, batch)
    limit = Bench.operand_limit(bench, grid)
    if fields.get("zero_point", 0) in (0, 15) or grid.symmetric:
        assert limit == pytest.approx(np.mean([np.abs(x).max() for x in batches]))
        return
    stage = clip_stage("operand", Candidate(weight=WEIGHT, operand=grid), np.array([limit]), SearchConfig())
    found = stage.at({"gamma_c": 1.0}).operand
    sides = [max(-x.min() / found.zero_point, x.max() / (grid.qmax - grid.zero_point), 0) for x in batches]
    assert found.scale == pytest.approx(np.mean(sides), rel=1e-6)
    assert Bench.operand_limit(bench, None) == pytest.approx(np.mean([np.abs(x).max() for x in batches]))


def test_clips_of_weights_are_shares_of_every_channel():
    array = np.array([[-3.0, 1.0], [0.5, 2.0]], np.float32)
    config = SearchConfig(clips=(0.5, 1.0))
    stage = clip_stage("weight", Candidate(weight=WEIGHT), weight_limits(array, WEIGHT), config)
    assert [dict(point) for point in stage.grid] == [{"gamma_c": 0.5}, {"gamma_c": 1.0}]
    found = stage.at({"gamma_c": 0.5}).weight
    np.testing.assert_allclose(found.scale, [1.5 / 7, 1.0 / 7])
    assert found.gain == (1.0,)
    assert (stage.name, stage.asked, stage.current.weight) == ("weight clip", 2, WEIGHT)
    assert clip_stage("weight", Candidate(weight=WEIGHT), np.ones(2), SearchConfig(base=False)).current is None
    assert positive(np.array([0.0, 1e-31, 1e-29])).tolist() == pytest.approx([1.0, 1.0, 1e-29])


def test_points_of_rounding():
    now = Candidate(weight=WEIGHT, operand=operand())
    config = SearchConfig(gamma_n=(0.0, 0.5), gamma_s=(0.25,))
    for side in ("weight", "operand"):
        stage = round_stage(side, now, config)
        assert [dict(point) for point in stage.grid] == [{"gamma_n": g, "gamma_s": 0.25} for g in (0.0, 0.5)]
        assert dict(stage.bounds) == {"gamma_n": (-1.0, 1.0), "gamma_s": (0.0, 1.0)}
        nearest, curved = (getattr(stage.at(point), side).rounding for point in stage.grid)
        assert nearest is None
        assert curved == Rounding(gamma_n=0.5, gamma_s=0.25)
    first = round_stage("weight", now, SearchConfig(gamma_n=(0.5,), gamma_s=(), exponent="printed"))
    assert dict(first.bounds) == {"gamma_n": (-1.0, 1.0)}
    assert first.at(first.grid[0]).weight.rounding == Rounding(gamma_n=0.5, reading="printed")
    fine = round_stage("operand", now, SearchConfig(fine=True)).at({"gamma_n": 0.5, "gamma_s": 1.0})
    assert fine.operand.rounding.subdivision == 16
    with pytest.raises(ValueError, match="stays in floating point"):
        round_stage("operand", Candidate(weight=WEIGHT), config).at({"gamma_n": 0.5})


def test_what_may_be_clipped_and_rounded():
    plain, fine = SearchConfig(), SearchConfig(fine=True)
    steps = {"channel_scale": (0.5, 1.0)}
    rows = [
        (WEIGHT, True, True),
        (WeightQuant(bits=4, scale=(1.0,), symmetric=False, zero_point=(2,)), False, False),
        (WeightQuant(bits=4, scale=(1.0,), input_scale=(0.5,)), False, False),
        (WeightQuant(bits=4, scale=(1.0, 1.0), granularity=Granularity(axis=0), channel_bits=(3, 5)), False, False),
        (operand(), True, True),
        (operand(zero_point=3), True, False),
        (operand(symmetric=True, zero_point=7), True, True),
        (operand(offset=0.5), True, False),
        (operand(**steps), False, False),
        (operand(**steps, channel_bits=(3, 4)), False, False),
    ]
    for grid, clip, rounded in rows:
        assert (can_clip(grid), can_round(grid, plain)) == (clip, rounded), grid
    assert [subdivision(operand(bits=bits)) for bits in (2, 4, 5, 6, 7, 8)] == [16, 16, 8, 4, 2, 1]
    assert [can_round(operand(bits=bits), fine) for bits in (4, 7, 8)] == [True, True, False]
    assert can_round(operand(bits=8), plain)


def test_shares_of_the_work(model_from_text):
    """A chain of three layers and a branch, whose multiplications are counted by hand."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N,2,6,6] x, float[4,2,3,3] u, float[4,4,1,1] v, float[3,4,1,1] w) => (float[N,4,4,4] y, float[N,3,4,4] z)
    { [a] a = Conv(x, u)  r = Relu(a)  [b] b = Conv(r, v)  [c] z = Conv(r, w)  y = Neg(b) }"""
    arrays = {"u": (4, 2, 3, 3), "v": (4, 4, 1, 1), "w": (3, 4, 1, 1)}
    net = normalise(load(model_from_text(text, **{n: np.ones(s, np.float32) for n, s in arrays.items()})))
    view = GraphView(net)
    work = {"a": 16 * 72, "b": 16 * 16, "c": 16 * 12}
    total = sum(work.values())
    assert own_shares(view) == pytest.approx({name: each / total for name, each in work.items()})
    assert shares(view) == pytest.approx({"a": 1.0, "b": work["b"] / total, "c": work["c"] / total})


def test_costs_add_up():
    cost = Cost()
    for _ in range(2):
        cost.add(Cost(asked=10, run=4, samples=100, forwards=20.0))
    assert cost.to_dict() == {"asked": 20, "run": 8, "samples": 200, "forwards": 40.0}
    assert cost.saving(64) == 20 * 64 / 40
    assert Cost().saving(64) == float("inf")


def test_the_evaluations_of_algorithm_1():
    config = SearchConfig(clips=(0.5, 1.0), gamma_n=(-0.5, 0.0, 0.5), gamma_s=(0.0, 1.0))
    assert config.evaluations(activations=False) == 2 + 6 + 2
    assert config.evaluations(activations=True) == 2 * (2 + 6) + 2
    bayes = SearchConfig(clips=(0.5, 1.0), gamma_n=(0.0,), gamma_s=(), search="bo", further=7)
    assert bayes.evaluations(activations=True) == 2 * (2 + 1 + 2 * 7) + 2
    assert SearchConfig(ingredients=("bias",)).evaluations(activations=True) == 2
    assert [r.gamma_n for r in config.roundings[:2]] == [0.0, 0.0], "rounding to nearest wins ties"


@pytest.mark.parametrize(
    "given",
    [
        {"confidence": 0.5},
        {"confidence": 1.0},
        {"keep": 0.0},
        {"keep": 1.5},
        {"tolerance": -0.1},
        {"tolerance": float("nan")},
        {"first": 1},
        {"passes": 0},
        {"further": -1},
        {"patience": -1},
        {"clips": (0.0,)},
        {"clips": (1.1,)},
        {"ingredients": ()},
    ],
)
def test_settings_out_of_range(given):
    with pytest.raises(UsageError):
        SearchConfig(**given)
    assert SearchConfig(keep=1.0, first=2, tolerance=0.0, further=0, patience=0, clips=(1.0,))


def test_tensors_beyond_the_limit_are_on_disk():
    arrays = RNG.normal(size=(4, 50)).astype(np.float32)
    tensors = Tensors(arrays[0].nbytes * 2)
    for index, array in enumerate(arrays):
        tensors.put("ab"[index % 2], index, array)
    assert ("a" in tensors, "c" in tensors, tensors.names()) == (True, False, {"a", "b"})
    assert (tensors.held, tensors.spilled) == (arrays[0].nbytes * 2, arrays[0].nbytes * 2)
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(tensors.get("ab"[index % 2], index), array)
    copy = tensors.only(["b"])
    assert (copy.names(), copy.spilled) == ({"b"}, 0)
    np.testing.assert_array_equal(copy.get("b", 3), arrays[3])
    tensors.keep(["a"])
    assert (tensors.names(), tensors.held, tensors.spilled) == ({"a"}, arrays[0].nbytes, arrays[0].nbytes)
    tensors.close()
    assert (tensors.names(), tensors.held, tensors.spilled) == (set(), 0, 0)
