"""Exact confidence: never sure too often, and not far from the asymptotic answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

import qmath

COUNT = 40


@pytest.mark.parametrize("rates", [(0.1, 0.02), (0.05, 0.05), (0.3, 0.2), (0.02, 0.0), (0.0, 0.1), (0.5, 0.5)])
def test_a_claim_that_just_fails_is_accepted_for_at_most_one_in_twenty_samples(rates):
    """By enumeration of everything that forty samples can show."""
    lost, gained = rates
    rest = 1 - lost - gained
    accepted = 0.0
    for a in range(COUNT + 1):
        for b in range(COUNT + 1 - a):
            chance = multinomial.pmf([a, b, COUNT - a - b], COUNT, [lost, gained, rest])
            if chance > 1e-7 and qmath.drop_confidence(a, b, COUNT, drop=lost - gained) >= 0.95:
                accepted += chance
    assert accepted <= 0.05 + 1e-4


def test_the_bound_is_that_of_the_normal_law_for_many_samples():
    lost, gained, count = 2_500, 2_300, 100_000
    observed = (lost - gained) / count
    normal = observed + 1.6449 * np.sqrt((lost + gained) / count - observed**2) / np.sqrt(count)
    assert qmath.drop_bound(lost, gained, count) == pytest.approx(normal, rel=0.03)


def test_the_bound_is_where_confidence_is_reached():
    bound = qmath.drop_bound(7, 4, 900, confidence=0.9)
    assert (
        qmath.drop_confidence(7, 4, 900, drop=bound + 1e-5) >= 0.9 > qmath.drop_confidence(7, 4, 900, drop=bound - 1e-5)
    )


@pytest.mark.parametrize("count", [30, 300, 3_000])
def test_no_loss_seen_is_worth_little_more_than_three_samples(count):
    """The rule of three: 3 / count excludes 95 %; the unknown gains cost a little."""
    assert 0.9 * 3 / count <= qmath.drop_bound(0, 0, count) <= 1.4 * 3 / count


def test_confidence_grows_with_the_claim_and_falls_with_the_loss():
    sure = [qmath.drop_confidence(10, 5, 2_000, drop=d) for d in (-0.01, 0.0, 0.002, 0.005, 0.02, 1.0)]
    assert sure == sorted(sure)
    assert sure[0] == 0.0
    assert sure[-1] == 1.0
    assert qmath.drop_confidence(20, 5, 2_000, drop=0.005) < qmath.drop_confidence(10, 5, 2_000, drop=0.005)


def test_a_gain_can_be_claimed():
    assert qmath.drop_confidence(5, 60, 1_000, drop=-0.02) > 0.99
    assert qmath.drop_bound(5, 60, 1_000) < -0.03


@pytest.mark.parametrize("hits", [0, 1, 50, 97, 100])
def test_shares_agree_with_scipy(hits):
    exact = binomtest(hits, 100, 0.9, alternative="greater")
    assert qmath.share_confidence(hits, 100, share=0.9) == pytest.approx(1 - exact.pvalue, abs=1e-12)
    assert qmath.share_bound(hits, 100) == pytest.approx(exact.proportion_ci(0.95).low, abs=1e-12)


@pytest.mark.parametrize("counts", [(-1, 0, 10), (6, 5, 10), (0, 0, 0), (0.5, 0, 10), (float("nan"), 0, 10)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="counts are whole numbers"):
        qmath.drop_confidence(*counts, drop=0.1)


@pytest.mark.parametrize("drop", [-1.5, 2.0, 50, float("nan")])
def test_points_are_not_fractions(drop):
    with pytest.raises(ValueError, match=r"half a point is 0\.005"):
        qmath.drop_confidence(1, 1, 10, drop=drop)


@pytest.mark.parametrize(
    "call", [lambda c: qmath.drop_bound(1, 1, 10, confidence=c), lambda c: qmath.share_bound(1, 10, confidence=c)]
)
def test_certainty_cannot_be_asked_for(call):
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match="confidence must lie between"):
            call(confidence)


def test_a_share_is_a_fraction():
    with pytest.raises(ValueError, match="share must be a fraction"):
        qmath.share_confidence(1, 10, share=90)
