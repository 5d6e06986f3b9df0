"""Second-order rounding and reconstruction on offer: where they run, and that only what samples prefer stays."""

from __future__ import annotations

import dataclasses

import pytest

import qgraph
from qgraph.plan import registry

QUICK = {"measure": False, "guard": "off"}


def holds_codes(result: qgraph.Result) -> bool:
    return any(quant.weight.codes for quant in result.plan.layers)


def decided(result: qgraph.Result) -> list[str]:
    return [note for note in result.plan.notes if "held out" in note]


@pytest.mark.parametrize(("data", "activations"), [(True, 4), (False, 8)])
def test_few_bits_are_rounded_to_second_order_unasked(digits, digits_calibration, data, activations):
    samples = digits_calibration if data else None
    result = qgraph.quantize(digits, samples, limit=64, weights=4, activations=activations, **QUICK)
    plain = qgraph.quantize(digits, samples, limit=64, weights=4, activations=activations, rounding="nearest", **QUICK)
    (note,) = decided(result)
    before, after = (float(part) for part in note.removeprefix("second-order: ").split(" dB")[0].split(" -> "))
    assert after > before + 1
    assert holds_codes(result)
    assert not holds_codes(plain)
    assert decided(plain) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": 4, "method": "minmax"},
        {"weights": 4, "protocol": "paper"},
        {"weights": 4, "limit": 6},
        {"weights": 4, "rounding": "nearest"},
    ],
)
def test_nothing_is_tried_at_8_bits_for_baselines_and_papers_or_where_no_sample_is_left(
    digits, digits_calibration, options
):
    result = qgraph.quantize(digits, digits_calibration, **{"limit": 32, **options}, **QUICK)
    assert not holds_codes(result)
    assert decided(result) == []


def test_what_samples_held_out_do_not_prefer_is_dropped(digits, digits_calibration, monkeypatch):
    def worse(plan, given):
        return plan.map_activations(lambda grid: dataclasses.replace(grid, scale=grid.scale * 4))

    found = registry.find("second-order")
    monkeypatch.setitem(registry._METHODS, "second-order", dataclasses.replace(found, function=worse))
    same = {"limit": 64, "weights": 4, **QUICK}
    result = qgraph.quantize(digits, digits_calibration, **same)
    assert result.plan == qgraph.quantize(digits, digits_calibration, rounding="nearest", **same).plan
    asked = qgraph.quantize(digits, digits_calibration, rounding="second-order", **same)
    assert asked.plan != result.plan  # what is asked for by name stays


def test_what_would_take_long_is_left_to_those_who_ask(digits, digits_calibration, monkeypatch):
    monkeypatch.setattr("qgraph.jobs.finish.MOST_WORK", 10**6)
    same = {"limit": 64, "weights": 4, **QUICK}
    result = qgraph.quantize(digits, digits_calibration, **same)
    assert not holds_codes(result)
    assert [note for note in result.plan.notes if "second order" in note] == [
        "not rounded to second order, which would take minutes: rounding='second-order'"
    ]
    assert holds_codes(qgraph.quantize(digits, digits_calibration, rounding="second-order", **same))


def test_fast_looks_at_fewer_samples_and_best_goes_on_block_by_block(digits, digits_calibration, monkeypatch):
    from qgraph.methods.second_order import round as second_order

    seen = []
    whole = second_order.round_weights

    def spied(*args, config, **options):
        seen.append(config)
        return whole(*args, config=config, **options)

    monkeypatch.setattr(second_order, "round_weights", spied)
    same = {"limit": 64, "weights": 3, "activations": 3, **QUICK}
    names = []
    for effort in ("fast", "default", "best"):
        result = qgraph.quantize(digits, digits_calibration, effort=effort, **same)
        names.append([note.partition(":")[0] for note in decided(result)])
    assert names == [["second-order"], ["second-order"], ["second-order", "reconstruct"]]
    assert seen[0].samples < seen[1].samples
    assert seen[1] == seen[2]
