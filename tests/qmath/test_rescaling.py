"""What is called exact is the same in every order of float32 operations."""

from __future__ import annotations

import numpy as np
import pytest

import qmath

RNG = np.random.default_rng(5)
A, B = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")


def orders(a, b, y):
    """The codes of all sums, computed in float32 in five ways, fused products among them."""
    f = np.float32
    (sa, za), (sb, zb), (sy, zy) = ((f(s), f(z)) for s, z in (a, b, y))
    ra, rb = sa / sy, sb / sy
    x, w = A.astype(f), B.astype(f)
    fixed = zy - (ra * za + rb * zb)
    fused = (np.float64(ra) * x + np.float64(fixed)).astype(f)  # one rounding, as a fused multiply-add
    yield ra * x + (rb * w + fixed)
    yield (np.float64(rb) * w + np.float64(fused)).astype(f)
    yield (sa * (x - za) + sb * (w - zb)) / sy + zy
    yield (ra * (x - za) + rb * (w - zb)) + zy
    yield (sa * (x - za) + sb * (w - zb)) * (f(1) / sy) + zy


def codes(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def test_odd_multiples_of_a_unit_add_up_to_the_same_codes_in_every_order():
    for _ in range(20):
        scales = qmath.odd_steps(RNG.uniform(0.02, 0.2, 3), 2.0**-11)
        grids = [(float(s), int(z)) for s, z in zip(scales, RNG.integers(0, 256, 3), strict=True)]
        assert qmath.add_margin(*grids).holds
        first, *others = (codes(v) for v in orders(*grids))
        assert all(np.array_equal(first, other) for other in others)


def test_no_margin_is_claimed_where_orders_differ():
    differed = 0
    for _ in range(40):
        grids = [
            (float(np.float32(s)), int(z))
            for s, z in zip(RNG.uniform(0.02, 0.2, 3), RNG.integers(0, 256, 3), strict=True)
        ]
        first, *others = (codes(v) for v in orders(*grids))
        if not all(np.array_equal(first, other) for other in others):
            differed += 1
            assert not qmath.add_margin(*grids).holds
    assert differed > 5


def test_ties_leave_no_margin():
    assert qmath.add_margin((1.0, 0), (1.0, 0), (2.0, 0)).distance == 0


def test_short_steps_have_few_bits_and_are_little_larger():
    given = RNG.uniform(1e-6, 10, 1000)
    found = qmath.short_steps(given, 8)
    assert (qmath.significant_bits(found) <= 8).all()
    assert ((found >= given) & (found <= given * (1 + 2.0**-7))).all()
    np.testing.assert_array_equal(qmath.short_steps(found, 8), found)


def test_products_of_short_steps_are_exact_in_float32():
    a, b, c = (qmath.short_steps(RNG.uniform(0.01, 1, 500), bits) for bits in (8, 10, 6))
    product = np.float32(a) * np.float32(b) * np.float32(c)
    np.testing.assert_array_equal(product.astype(np.float64), a * b * c)


def test_odd_steps_are_odd_and_no_smaller():
    given = RNG.uniform(0.1, 50, 200)
    units = qmath.odd_steps(given, 0.25) / 0.25
    assert (units % 2 == 1).all()
    assert (units * 0.25 >= given).all()
    assert (units * 0.25 <= given + 0.5).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_scales_are_positive(scale):
    with pytest.raises(ValueError, match="scale"):
        qmath.add_margin((1.0, 0), (1.0, 0), (scale, 0))
