"""What is said of other files of the size of mixed bits."""

from __future__ import annotations

import pytest

import qgraph
from qgraph.cli import main
from qgraph.jobs.same_size import Rival, compared

MB = 2**20


def rival(name: str, megabytes: float, decibels: float) -> Rival:
    return Rival(name=name, nbytes=round(megabytes * MB), decibels=decibels)


def test_the_best_of_a_size_comes_first_and_larger_ones_that_are_worse_are_named():
    own = [rival("mixed bits", 0.5, 20.0), rival("mixed bits and reconstruct", 0.5, 22.0)]
    others = [rival("3 bits for all layers", 0.4, 12.0), rival("4 bits for all layers", 0.6, 21.0)]
    assert compared(own, others, round(0.5 * MB), 64) == (
        "best of 0.500 MB of weights, on 64 samples: mixed bits and reconstruct, 0.500 MB: 22.0 dB; "
        "mixed bits, 0.500 MB: 20.0 dB; 3 bits for all layers, 0.400 MB: 12.0 dB",
        "larger, and worse than mixed bits and reconstruct: 4 bits for all layers, 0.600 MB: 21.0 dB",
    )


def test_one_width_may_be_best_and_a_larger_file_that_is_better_is_none_of_this_size():
    own, size = [rival("mixed bits", 0.5, 20.0)], round(0.5 * MB)
    others = [rival("3 bits for all layers", 0.5, 20.5), rival("4 bits for all layers", 0.6, 30.0)]
    (said,) = compared(own, others, size, 8)
    assert said.startswith("best of 0.500 MB of weights, on 8 samples: 3 bits for all layers, 0.500 MB: 20.5 dB; mixed")
    assert "4 bits" not in said


@pytest.mark.parametrize("rounding", ["nearest", None])
def test_a_budget_of_weights_is_compared_with_one_width(digits, digits_calibration, rounding):
    same = {"limit": 48, "guard": "off"}
    result = qgraph.quantize(digits, digits_calibration, average_bits=4.5, rounding=rounding, **same)
    note, *_ = result.others
    assert result.to_dict()["others"] == list(result.others)
    size = sum(layer.weight_bytes for layer in result.layers) / MB
    assert note.startswith(f"best of {size:.3f} MB of weights, on {result.quality.samples} samples: mixed bits")
    assert ("mixed bits and second-order" in note) == (rounding is None)
    uniform = qgraph.quantize(digits, digits_calibration, weights=4, allocate_bits="none", clip="mse", **same)
    size = sum(layer.weight_bytes for layer in uniform.layers) / MB
    assert f"4 bits for all layers, {size:.3f} MB" in note
    assert f"mixed bits, {size:.3f} MB" not in note


def test_nothing_is_compared_where_nothing_is_measured_or_weights_have_one_width(digits, digits_calibration):
    same = {"limit": 16, "guard": "off", "bits": (4, 8)}
    for options in ({"average_bits": 6, "measure": False}, {"average_activation_bits": 6}):
        result = qgraph.quantize(digits, digits_calibration, **same, **options)
        assert result.others == ()


def test_it_is_said_on_the_command_line(digits, digits_calibration, tmp_path, capsys):
    given = ["--data", str(digits_calibration), "--limit", "32", "--average-bits", "3", "--bits", "2,4,8"]
    assert main(["quantize", str(digits), "-o", str(tmp_path / "out.onnx"), *given]) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "measured: best of" in said
    assert "2 bits for all layers" in said
