"""Analytic thresholds: minimal, homogeneous, and consistent with each other. Their values are in test_golden_qmath."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath

CLIPS = {qmath.Laplace: qmath.laplace_clip, qmath.Gaussian: qmath.gauss_clip}
FAMILIES = list(CLIPS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("relu", [False, True])
def test_no_neighbour_has_a_smaller_approximate_error(family, relu) -> None:
    bits = np.arange(1, 17)
    clip = CLIPS[family](1.0, bits, relu=relu)
    least = qmath.expected_error(family(), clip, bits, relu=relu)
    near = np.random.default_rng(0).uniform(0.5, 2.0, (1000, 1))
    assert np.all(qmath.expected_error(family(), clip * near, bits, relu=relu) >= least * (1 - 1e-13))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grid", ["midrise", "midtread"])
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_no_neighbour_has_a_smaller_exact_error(family, grid, bits) -> None:
    levels = qmath.midrise_levels if grid == "midrise" else qmath.midtread_levels
    clip = float(CLIPS[family](1.0, bits, exact=True, grid=grid))
    least = float(qmath.exact_error(family(), levels(clip, bits)))
    for factor in np.random.default_rng(bits).uniform(0.5, 2.0, 1000 if bits < 8 else 100):
        assert float(qmath.exact_error(family(), levels(clip * factor, bits))) >= least * (1 - 1e-13)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    scale=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5),
    exact=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_clips_are_homogeneous_and_broadcast(family, scale, exact, relu, seed) -> None:
    bits = np.arange(2, 9)
    table = CLIPS[family](np.array(scale)[:, None], bits, relu=relu, exact=exact)
    unit = CLIPS[family](1.0, bits, relu=relu, exact=exact)
    np.testing.assert_allclose(table, np.outer(scale, unit), rtol=1e-14)
    order = np.random.default_rng(seed).permutation(len(scale))
    np.testing.assert_array_equal(
        CLIPS[family](np.array(scale)[order, None], bits, relu=relu, exact=exact), table[order]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exact", [False, True])
def test_more_bits_clip_less(family, exact) -> None:
    clips = CLIPS[family](1.0, np.arange(2, 17), exact=exact)
    assert np.all(np.diff(clips) > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_relu_is_one_more_bit(family) -> None:
    bits = np.arange(1, 16)
    for exact in (False, True):
        np.testing.assert_allclose(
            CLIPS[family](1.0, bits, relu=True, exact=exact),
            CLIPS[family](1.0, bits + 1, exact=exact),
            rtol=1e-12,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_many_bits_bring_approximate_and_exact_together(family) -> None:
    assert CLIPS[family](1.0, 14, exact=True) == pytest.approx(CLIPS[family](1.0, 14), rel=1e-3)
    assert CLIPS[family](1.0, 2, exact=True) > 1.08 * CLIPS[family](1.0, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loc", [-3.0, -0.5, 0.0, 0.5, 4.0])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_rectified_priors_of_any_location(family, loc, bits) -> None:
    prior = family(loc, 1.5, one_sided=True)
    clip = float(qmath.prior_clip(prior, bits))
    least = float(qmath.expected_error(prior, clip, bits))
    near = clip * np.random.default_rng(0).uniform(0.3, 3.0, 1000)
    assert np.all(qmath.expected_error(prior, near, bits) >= least * (1 - 1e-12))
    if loc == 0:
        assert clip == pytest.approx(float(CLIPS[family](1.5, bits, relu=True)), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_prior_clip_of_a_two_sided_prior_is_measured_from_its_centre(family) -> None:
    np.testing.assert_array_equal(qmath.prior_clip(family(7.0, [1.0, 2.0]), 4), CLIPS[family]([1.0, 2.0], 4))
    with pytest.raises(ValueError, match="loc = 0"):
        qmath.prior_clip(family(1.0, 1.0, one_sided=True), 4, exact=True)


def test_what_cannot_be_clipped() -> None:
    with pytest.raises(ValueError, match="positive"):
        qmath.laplace_clip([1.0, 0.0], 4)
    with pytest.raises(ValueError, match="bits"):
        qmath.gauss_clip(1.0, 17)
    with pytest.raises(ValueError, match="2 to 16"):
        qmath.laplace_clip(1.0, 1, exact=True, grid="midtread")
    with pytest.raises(ValueError, match="midrise"):
        qmath.laplace_clip(1.0, 4, exact=True, grid="mid")  # type: ignore[arg-type]
