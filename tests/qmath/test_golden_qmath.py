"""Closed forms against numerical integration (tests/golden/make_golden.py), and against the paper's print."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import qmath

GOLDEN = Path(__file__).parents[1] / "golden"
PRIORS = {"laplace": qmath.Laplace, "gaussian": qmath.Gaussian}
CLIPS = {"laplace": qmath.laplace_clip, "gaussian": qmath.gauss_clip}


def rows(name: str) -> list[dict[str, str]]:
    with (GOLDEN / name).open() as file:
        found = list(csv.DictReader(file))
    assert found
    assert all(row["source"] for row in found)
    return found


def test_partial_moments() -> None:
    for row in rows("prior_tails.csv"):
        value = PRIORS[row["family"]].unit_tail(float(row["u"]), int(row["order"]))
        assert float(value) == pytest.approx(float(row["value"]), rel=1e-13, abs=0), row


def test_error_of_any_grid() -> None:
    for row in rows("grid_errors.csv"):
        prior = PRIORS[row["family"]](float(row["loc"]), float(row["scale"]), row["one_sided"] == "1")
        levels = np.linspace(float(row["low"]), float(row["high"]), 2 ** int(row["bits"]))
        assert float(qmath.exact_error(prior, levels)) == pytest.approx(float(row["error"]), rel=2e-13, abs=0), row


@pytest.mark.parametrize("grid", ["approximate", "midrise", "midtread"])
def test_optimal_clips(grid: str) -> None:
    chosen = [row for row in rows("optimal_clips.csv") if row["grid"] == grid]
    assert chosen
    for row in chosen:
        relu, bits, clip = row["relu"] == "1", int(row["bits"]), float(row["clip"])
        options = {"relu": relu} if grid == "approximate" else {"relu": relu, "exact": True, "grid": grid}
        assert float(CLIPS[row["family"]](1.0, bits, **options)) == pytest.approx(clip, rel=1e-12, abs=0), row


def test_errors_at_the_optimal_clips() -> None:
    for row in rows("optimal_clips.csv"):
        prior, bits, clip = PRIORS[row["family"]](), int(row["bits"]), float(row["clip"])
        relu = row["relu"] == "1"
        if row["grid"] == "approximate":
            error = qmath.expected_error(prior, clip, bits, relu=relu)
        else:
            make = qmath.midrise_levels if row["grid"] == "midrise" else qmath.midtread_levels
            levels = make(clip, bits, relu=relu)
            rectified = PRIORS[row["family"]](0.0, 1.0, relu)
            at_zero = levels[0] ** 2 / 2 if relu else 0.0  # A.17 leaves the zeros of a ReLU out
            error = qmath.exact_error(rectified, levels) - at_zero
        assert float(error) == pytest.approx(float(row["error"]), rel=1e-12, abs=0), row


def test_the_constants_that_the_paper_prints() -> None:
    for row in rows("aciq_printed.csv"):
        clip = float(CLIPS[row["family"]](1.0, int(row["bits"])))
        assert clip == pytest.approx(float(row["value"]), rel=0, abs=float(row["tolerance"])), row
