"""Priors: what a density must be, what a fit must find."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

import qmath

FAMILIES = [qmath.Laplace, qmath.Gaussian]
SCIPY = {qmath.Laplace: stats.laplace, qmath.Gaussian: stats.norm}
locations = st.floats(-3, 3)
scales = st.floats(0.05, 20)


@pytest.mark.parametrize("family", FAMILIES)
@given(loc=locations, scale=scales, x=st.floats(-50, 50))
@settings(max_examples=50, deadline=None)
def test_two_sided_laws_are_those_of_scipy(family, loc, scale, x) -> None:
    law, reference = family(loc, scale), SCIPY[family](loc, scale)
    np.testing.assert_allclose(law.pdf(x), reference.pdf(x), rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(law.cdf(x), reference.cdf(x), rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(law.sf(x), reference.sf(x), rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loc", [-1.0, 0.0, 0.7])
def test_a_rectified_law_is_an_atom_and_the_density_above_zero(family, loc) -> None:
    law = family(loc, 1.3, one_sided=True)
    above, _ = integrate.quad(law.pdf, 0, max(loc, 0) + 40, points=[max(loc, 0.0)], limit=200)
    assert above == pytest.approx(float(law.positive_mass), rel=1e-9)
    assert float(law.cdf(0.0)) == pytest.approx(1 - above, rel=1e-9)
    assert float(law.cdf(-1e-9)) == 0.0
    assert float(law.sf(-1e-9)) == 1.0
    assert float(law.pdf(-0.1)) == 0.0
    drawn = law.sample(200_000, seed=0)
    share = np.mean(drawn == 0)
    assert abs(share - (1 - above)) < 5 * np.sqrt(share * (1 - share) / drawn.size)


@pytest.mark.parametrize("family", FAMILIES)
def test_tails_stay_positive_and_fall(family) -> None:
    u = np.linspace(0, 37, 400)
    for order in (0, 1, 2):
        tail = family.unit_tail(u, order)
        assert np.all(tail > 0)
        assert np.all(np.diff(tail) < 0)
    assert family.unit_tail(1e300, 2) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
@given(loc=locations, scale=scales, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_fits_follow_shift_and_scale(family, loc, scale, seed) -> None:
    x = np.random.default_rng(seed).normal(size=301)
    plain, moved = family.fit(x), family.fit(loc + scale * x)
    assert moved.loc == pytest.approx(loc + scale * plain.loc, rel=1e-9, abs=1e-9)
    assert moved.scale == pytest.approx(scale * plain.scale, rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loc", [-1.0, 0.0, 0.6])
@pytest.mark.parametrize("one_sided", [False, True])
def test_the_fit_maximises_the_likelihood(family, loc, one_sided) -> None:
    x = family(loc, 1.5, one_sided).sample(2001, seed=3)
    fitted = family.fit(x, one_sided=one_sided)

    def negative(parameters) -> float:
        law = family(parameters[0], np.exp(parameters[1]), one_sided)
        zeros = int(np.count_nonzero(x == 0)) if one_sided else 0
        return float(-np.sum(np.log(law.pdf(x[x > 0] if one_sided else x)))) - (
            zeros * float(np.log(law.cdf(0.0))) if zeros else 0.0
        )

    ours = negative((fitted.loc, np.log(fitted.scale)))
    found = optimize.minimize(negative, (fitted.loc + 0.1, np.log(fitted.scale) + 0.1), method="Nelder-Mead")
    assert ours <= found.fun + 1e-6
    for dl, ds in itertools.product((-0.02, 0, 0.02), repeat=2):
        assert ours <= negative((fitted.loc + dl, np.log(fitted.scale) + ds)) + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("method", ["likelihood", "moments"])
def test_fits_find_the_parameters_that_made_the_data(family, one_sided, method) -> None:
    made = family(0.0, 2.5, one_sided)
    fitted = family.fit(made.sample(200_000, seed=5), one_sided=one_sided, method=method)
    assert fitted.loc == pytest.approx(0.0, abs=0.04)
    assert fitted.scale == pytest.approx(2.5, rel=0.02)


def test_the_moment_fit_of_laplace_is_the_mean_deviation() -> None:
    x = np.array([1.0, 2.0, 3.0, 10.0])
    fitted = qmath.Laplace.fit(x, method="moments")
    assert fitted.loc == 4.0
    assert fitted.scale == np.abs(x - 4.0).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_histogram_gives_nearly_the_fit_of_its_data(family, one_sided) -> None:
    x = family(0.0, 1.0, one_sided).sample(100_000, seed=7)
    exact = family.fit(x, one_sided=one_sided)
    binned = family.fit(qmath.Histogram.of(x), one_sided=one_sided)
    width = qmath.Histogram.of(x).width
    assert abs(binned.loc - exact.loc) < 3 * width
    assert abs(binned.scale - exact.scale) < 3 * width
    assert qmath.goodness_of_fit(exact, x) == pytest.approx(
        qmath.goodness_of_fit(exact, qmath.Histogram.of(x)), abs=2e-3
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loc", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_fit_prior_names_the_family(family, loc, one_sided) -> None:
    x = family(loc, 0.7, one_sided).sample(50_000, seed=11)
    for data in (x, qmath.Histogram.of(x)):
        fit = qmath.fit_prior(data)
        assert type(fit.prior) is family
        assert fit.prior.one_sided == one_sided
        assert fit.accepted
        assert all(fit.distance <= distance for _, distance in fit.alternatives)


def test_fit_prior_accepts_no_prior_for_two_clusters() -> None:
    x = np.concatenate([np.full(500, -1.0), np.full(500, 1.0)]) + np.linspace(-0.01, 0.01, 1000)
    assert not qmath.fit_prior(x).accepted


def test_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    x = np.random.default_rng(0).normal(size=500)
    ours = qmath.goodness_of_fit(qmath.Gaussian(0.2, 1.1), x)
    assert ours == pytest.approx(stats.kstest(x, stats.norm(0.2, 1.1).cdf).statistic, rel=1e-12)


@pytest.mark.parametrize("data", [[2.0, 2.0], [0.0, 0.0, 0.0]])
def test_no_spread_is_an_error(data) -> None:
    with pytest.raises(ValueError, match="spread"):
        qmath.Gaussian.fit(data)


def test_one_sided_fits_need_something_positive_and_nothing_negative() -> None:
    with pytest.raises(ValueError, match="no positive"):
        qmath.Laplace.fit([0.0, 0.0], one_sided=True)
    with pytest.raises(ValueError, match="non-negative"):
        qmath.Laplace.fit([-1.0, 1.0], one_sided=True)


def test_priors_compare_and_hash_by_content() -> None:
    assert qmath.Laplace(0, [1, 2]) == qmath.Laplace(0.0, np.array([1.0, 2.0]))
    assert hash(qmath.Laplace(0, [1, 2])) == hash(qmath.Laplace(0.0, np.array([1.0, 2.0])))
    assert qmath.Laplace(0, 1) != qmath.Gaussian(0, 1)
    assert qmath.Laplace(0, 1) != qmath.Laplace(0, 1, one_sided=True)


@pytest.mark.parametrize("family", [qmath.Laplace, qmath.Gaussian])
def test_rectified_prior_has_the_moments_it_was_given(family):
    law = family(np.array([-3.0, -0.5, 0.0, 1.0, 4.0]), np.array([0.5, 1.0, 2.0, 1.0, 0.1]), True)
    t = np.asarray(law.loc) / np.asarray(law.scale)
    mean = law.scale * family.unit_tail(-t, 1)
    second = np.square(law.scale) * family.unit_tail(-t, 2)
    fitted = qmath.rectified_prior(family, mean, second)
    np.testing.assert_allclose(fitted.scale, law.scale, rtol=2e-4)
    np.testing.assert_allclose(fitted.loc, law.loc, rtol=2e-4, atol=1e-4)
    with pytest.raises(ValueError, match="mean of squares"):
        qmath.rectified_prior(family, 2.0, 1.0)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("draw", ["laplace", "normal", "standard_t"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_a_fit_knows_the_error_of_its_data(bits, draw, one_sided):
    x = getattr(np.random.default_rng(5), draw)(*((4,) if draw == "standard_t" else ()), size=30_000)
    x = np.maximum(x, 0) if one_sided else x + 0.5
    fit = qmath.fit_prior(x, one_sided=one_sided)
    clip = float(qmath.prior_clip(fit, bits))
    v = x[x > 0] if one_sided else x - fit.prior.loc
    levels = qmath.midrise_levels(clip, bits, relu=one_sided)
    nearest = levels[np.abs(v[:, None] - levels).argmin(axis=1)]
    measured = np.sum((v - nearest) ** 2) / x.size
    assert fit.error_ratio(bits) == pytest.approx(measured / float(qmath.expected_error(fit, clip, bits)), rel=1e-8)


def test_a_prior_of_light_tails_is_not_believed_for_many_bits_of_heavy_ones():
    x = np.random.default_rng(0).standard_t(4, size=100_000)
    fit = qmath.fit_prior(x)
    assert fit.accepted
    assert fit.holds_at == (2, 3)
    assert fit.error_ratio(8) > 20
    assert "times it at 8" in repr(fit)
    assert qmath.fit_prior(x, bits=3).accepted
    assert not qmath.fit_prior(x, bits=8).accepted
    assert not qmath.fit_prior(np.random.default_rng(0).standard_t(2.2, size=100_000)).accepted  # holds nowhere
    assert qmath.fit_prior(np.random.default_rng(0).laplace(size=100_000)).holds_at == tuple(range(2, 9))
    with pytest.raises(ValueError, match="from 2 to 8"):
        fit.error_ratio(9)


def test_a_fit_stands_for_its_prior():
    x = np.random.default_rng(0).laplace(size=1000)
    fit = qmath.fit_prior(x)
    assert qmath.prior_clip(fit, 4) == qmath.prior_clip(fit.prior, 4)
    assert qmath.goodness_of_fit(fit, x) == fit.distance
    assert qmath.exact_error(fit, [-1.0, 0.0, 1.0]) == qmath.exact_error(fit.prior, [-1.0, 0.0, 1.0])
    for wrong in (None, "laplace", x):
        with pytest.raises(TypeError, match=r"prior: expected a qmath\.Laplace or qmath\.Gaussian"):
            qmath.prior_clip(wrong, 4)
