"""All combinations of ACIQ's ingredients, and what they are worth on average."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from qgraph.assess.ablation import BY_INPUTS, INGREDIENTS, Ablation, Combination, ablate
from qgraph.cli import main
from qgraph.errors import UsageError


def test_average_effects_are_over_the_combinations_without_an_ingredient():
    gains = np.array([4.0, 3.0, 2.0, 1.0])
    combinations = tuple(
        Combination(used=used, top1=float(50 + gains @ used + 8 * (used[0] and used[1])), sqnr_db=10.0)
        for used in itertools.product((False, True), repeat=4)
    )
    effects = Ablation(float_top1=90.0, combinations=combinations).effects("top1")
    assert effects == pytest.approx(dict(zip(INGREDIENTS, [8.0, 7.0, 2.0, 1.0], strict=True)))


def test_ingredients_raise_the_fidelity_of_the_digits_network(digits, digits_test, digits_calibration):
    options = {"calibration": digits_calibration, "weights": 3, "activations": 3}
    result = ablate(digits, digits_test, format="float", **options)
    assert len({c.used for c in result.combinations}) == 16
    assert len(result.by_inputs) == 8
    assert all(c.by_inputs and "by input means" in c.name for c in result.by_inputs)
    assert result.float_top1 > 98
    effects = result.effects("sqnr_db")
    assert effects["clipping"] > 0.25  # what a rejected prior would lose
    assert effects["bias correction"] > 0.5
    assert effects[BY_INPUTS] > 0.5
    assert effects["weight bits"] >= 0  # under a quota of bins, two channels must give way for one
    assert result.to_dict()["average_effect"]["sqnr_db"] == effects


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(digits, digits_test, capsys, as_json):
    command = ["compare", str(digits), "--ablation", "aciq", "--data", str(digits_test), "--limit", "16"]
    extra = ["--json", "--weights", "5", "--format", "qdq"] if as_json else ["--weights", "2", "--activations", "2"]
    assert main([*command, *extra]) == 0
    shown = capsys.readouterr().out
    if as_json:
        content = json.loads(shown)
        assert len(content["combinations"]) == 16
        assert set(content["average_effect"]["top1"]) == {*INGREDIENTS, BY_INPUTS}
        assert len(content["by_inputs"]) == 8
    else:
        assert "average effect" in shown
        assert "█" in shown


def test_wrong_usage(digits, digits_test, capsys):
    data = ["--data", str(digits_test)]
    assert main(["compare", str(digits), str(digits), "--ablation", "aciq", *data]) == 2
    assert main(["compare", str(digits), str(digits), "--weights", "4", *data]) == 2
    assert "belong to --ablation" in capsys.readouterr().err
    with pytest.raises(UsageError, match="unknown format"):
        ablate(digits, digits_test, format="int4")
