"""Expected squared errors: against simulation, against each other, and at their limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qmath

FAMILIES = [qmath.Laplace, qmath.Gaussian]


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("grid", [qmath.midrise_levels, qmath.midtread_levels])
def test_exact_error_is_what_a_simulation_finds(family, one_sided, bits, grid) -> None:
    if bits == 1 and grid is qmath.midtread_levels and not one_sided:
        pytest.skip("a symmetric mid-tread grid of one bit has the level zero alone")
    prior = family(0.0 if not one_sided else 0.3, 1.7, one_sided)
    levels = grid(4.0, bits, relu=one_sided)
    x = prior.sample(400_000, seed=bits)
    squared = (x - nearest(x, levels)) ** 2
    sampling = squared.std() / np.sqrt(x.size)
    assert abs(squared.mean() - float(qmath.exact_error(prior, levels))) < 5 * sampling


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bits", [6, 8])
def test_the_papers_formula_is_what_a_simulation_finds_when_bits_are_many(family, relu, bits) -> None:
    """Where the approximation holds: the clip answered by itself, noise even within a cell."""
    prior, clip = family(0.0, 1.0), 3.0
    x = prior.sample(400_000, seed=bits)
    step = (clip if relu else 2 * clip) / 2**bits
    low = 0.0 if relu else -clip
    inside = (x > low) & (x < clip)
    answered = np.where(inside, (np.floor(x / step) + 0.5) * step, np.clip(x, low, clip))
    squared = np.where(x > 0, (x - answered) ** 2, 0.0) if relu else (x - answered) ** 2
    sampling = squared.std() / np.sqrt(x.size)
    formula = float(qmath.expected_error(prior, clip, bits, relu=relu))
    assert abs(squared.mean() - formula) < 5 * sampling + 2e-3 * formula


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_is_far_below_the_truth_at_two_bits(family) -> None:
    shares = []
    for bits in (2, 3, 4, 6, 8):
        clip = float(qmath.prior_clip(family(), bits))
        exact = float(qmath.exact_error(family(), qmath.midrise_levels(clip, bits)))
        shares.append(exact / float(qmath.expected_error(family(), clip, bits)) - 1)
    expected = (0.40, 0.21, 0.11) if family is qmath.Laplace else (0.47, 0.24, 0.12)
    assert shares[:3] == pytest.approx(expected, abs=0.006)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("family", FAMILIES)
@given(scale=st.floats(1e-3, 1e3), clip=st.floats(0.1, 12), bits=st.integers(1, 8), relu=st.booleans())
@settings(max_examples=40, deadline=None)
def test_errors_scale_with_the_square_of_the_units(family, scale, clip, bits, relu) -> None:
    one, scaled = family(0.0, 1.0, relu), family(0.0, scale, relu)
    np.testing.assert_allclose(
        qmath.expected_error(scaled, scale * clip, bits), scale**2 * qmath.expected_error(one, clip, bits), rtol=1e-12
    )
    np.testing.assert_allclose(
        qmath.exact_error(scaled, qmath.midrise_levels(scale * clip, bits, relu=relu)),
        scale**2 * qmath.exact_error(one, qmath.midrise_levels(clip, bits, relu=relu)),
        rtol=1e-10,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_relu_is_half_the_symmetric_error_with_one_more_bit(family) -> None:
    for bits in range(2, 8):
        np.testing.assert_allclose(
            qmath.expected_error(family(), 3.0, bits, relu=True),
            qmath.expected_error(family(), 3.0, bits + 1) / 2,
            rtol=1e-13,
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_broadcast(family) -> None:
    scale = np.array([0.5, 1.0, 2.0])[:, None]
    bits = np.array([2, 4, 8])
    table = qmath.expected_error(family(0.0, scale), 3.0, bits)
    assert table.shape == (3, 3)
    assert table[2, 1] == qmath.expected_error(family(0.0, 2.0), 3.0, 4)
    levels = qmath.midtread_levels(2.0, 3)
    several = qmath.exact_error(family([0.0, 0.1], [1.0, 2.0]), levels)
    assert several.shape == (2,)
    assert several[1] == pytest.approx(float(qmath.exact_error(family(0.1, 2.0), levels)), rel=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_keep_their_digits(family) -> None:
    """Inside a wide clip the error is step^2 / 12: closed forms that subtract would lose it."""
    clip = 40.0
    error = float(qmath.exact_error(family(), qmath.midrise_levels(clip, 16)))
    assert error == pytest.approx((2 * clip / 2**16) ** 2 / 12, rel=1e-6)


def test_the_tail_beyond_eight_sigma_is_not_negative() -> None:
    clips = np.linspace(6, 36, 61)
    rounding = clips**2 / (3 * 4.0**16)
    tail = qmath.expected_error(qmath.Gaussian(), clips, 16) - rounding
    assert np.all(tail >= -1e-15 * rounding)
    assert np.all(qmath.Gaussian.unit_tail(clips, 2) > 0)


def test_custom_thresholds_count() -> None:
    prior, levels = qmath.Gaussian(), np.array([-1.0, 0.0, 1.0])
    best = float(qmath.exact_error(prior, levels))
    assert float(qmath.exact_error(prior, levels, thresholds=[-0.5, 0.5])) == best
    moved = float(qmath.exact_error(prior, levels, thresholds=[-0.4, 0.6]))
    assert moved > best
    x = prior.sample(400_000, seed=1)
    squared = (x - levels[np.searchsorted([-0.4, 0.6], x)]) ** 2
    assert abs(squared.mean() - moved) < 5 * squared.std() / np.sqrt(x.size)


def test_levels_and_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match="ascending"):
        qmath.exact_error(qmath.Gaussian(), [0.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="thresholds"):
        qmath.exact_error(qmath.Gaussian(), [0.0, 1.0], thresholds=[0.2, 0.4])
    with pytest.raises(ValueError, match="positive"):
        qmath.expected_error(qmath.Gaussian(), -1.0, 4)
