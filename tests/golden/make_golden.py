"""Values that the closed forms of qmath must meet, by a method of their own: mpmath, 40 digits.

Densities are integrated numerically, cell by cell, and errors minimised by golden-section search on those integrals;
nothing here knows Lambert's function, a derivative or a partial moment. Run `python tests/golden/make_golden.py`; it
takes a few minutes.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from mpmath import exp, inf, mp, mpf, nstr, pi, quad, sqrt

HERE = Path(__file__).parent
DIGITS = 15
mp.dps = 40

Density = Callable[[mpf], mpf]
DENSITIES: dict[str, Density] = {
    "laplace": lambda u: exp(-abs(u)) / 2,
    "gaussian": lambda u: exp(-u * u / 2) / sqrt(2 * pi),
}


def minimise(f: Callable[[mpf], mpf], low: mpf, high: mpf) -> mpf:
    """Golden-section search: the argument to 16 digits, which needs the values to 32."""
    ratio = (sqrt(mpf(5)) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = f(a), f(b)
    while high - low > mpf(10) ** -16:
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = f(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = f(b)
    return (low + high) / 2


def excess(f: Density, t: mpf, order: int) -> mpf:
    """Integral of (x - t)^order f(x) above t."""
    cuts = [t, *(mpf(c) for c in (0, 1, 3, 6, 10, 20, 40) if c > t), inf]
    return quad(lambda x: (x - t) ** order * f(x), cuts)


def approximate(f: Density, bits: int, relu: bool, clip: mpf) -> mpf:
    """A.6 and its one-sided form, with the integral taken numerically."""
    if relu:
        return excess(f, clip, 2) + clip**2 / (24 * mpf(4) ** bits)
    return 2 * excess(f, clip, 2) + clip**2 / (3 * mpf(4) ** bits)


def half_grid(clip: mpf, cells: int, kind: str) -> list[mpf]:
    """Levels on the right of zero: cell midpoints, or multiples of a step from zero on."""
    if kind == "midrise":
        return [clip * (2 * i + 1) / (2 * cells) for i in range(cells)]
    return [clip * i / (cells - 1) for i in range(cells)]


def right_error(f: Density, cells: int, kind: str, clip: mpf) -> mpf:
    """Integral over x > 0 of (x - nearest level)^2 f(x)."""
    levels = half_grid(clip, cells, kind)
    edges = [mpf(0), *((a + b) / 2 for a, b in pairwise(levels))]
    total = excess_about(f, edges[-1], levels[-1])
    for q, a, b in zip(levels[:-1], edges[:-1], edges[1:], strict=True):
        total += quad(lambda x, q=q: (x - q) ** 2 * f(x), [a, b])
    return total


def excess_about(f: Density, t: mpf, q: mpf) -> mpf:
    cuts = [t, *(mpf(c) for c in (1, 3, 6, 10, 20, 40) if c > t), inf]
    return quad(lambda x: (x - q) ** 2 * f(x), cuts)


def clip_rows() -> Iterator[tuple[object, ...]]:
    for name, f in DENSITIES.items():
        for relu in (False, True):
            for bits in range(1, 9):
                error = partial(approximate, f, bits, relu)
                clip = minimise(error, mpf("0.5"), mpf(16))
                yield name, int(relu), bits, "approximate", clip, error(clip)
        for kind in ("midrise", "midtread"):
            for cells in (2, 4, 8, 16):  # codes on the right of zero
                error = partial(right_error, f, cells, kind)
                clip = minimise(error, mpf("0.7"), mpf(9))
                bits = cells.bit_length()
                yield name, 0, bits, kind, clip, 2 * error(clip)
                yield name, 1, bits - 1, kind, clip, error(clip)


def tail_rows() -> Iterator[tuple[object, ...]]:
    for name, f in DENSITIES.items():
        for text in ("-5", "-1", "0", "0.5", "1", "3", "8", "20", "30"):
            for order in (0, 1, 2):
                yield name, text, order, partial_moment(f, mpf(text), order)


def partial_moment(f: Density, u: mpf, order: int) -> mpf:
    """Integral of (x - u)^order f(x) above u, relative to f(u): `quad` stops at an absolute precision."""

    def relative(x: mpf) -> mpf:
        return (x - u) ** order * f(x) / f(u)

    start = max(u, mpf(0))
    cuts = [start + mpf(step) for step in (0, "0.125", "0.5", 1, 2, 4, 8, 16, 32, 64)]
    return f(u) * (quad(relative, [*cuts, inf]) + (quad(relative, [u, 0]) if u < 0 else 0))


def grid_rows() -> Iterator[tuple[object, ...]]:
    """Any grid, any location: the error of levels low + i (high - low) / (2^bits - 1), nearest level taken."""
    cases = [("0", "1", 0, "-2", "2", 3), ("0.3", "0.7", 0, "-1", "2.5", 4), ("-0.5", "2", 1, "0", "6", 3)]
    cases += [("0.4", "1.5", 1, "0", "5", 5), ("0", "0.01", 0, "-3", "3", 2), ("1", "3", 0, "-0.5", "0.75", 6)]
    for name, f in DENSITIES.items():
        for loc, scale, one_sided, low, high, bits in cases:
            m, s = mpf(loc), mpf(scale)
            count = 2**bits
            levels = [mpf(low) + i * (mpf(high) - mpf(low)) / (count - 1) for i in range(count)]
            edges = [-inf, *((a + b) / 2 for a, b in pairwise(levels)), inf]
            total = mpf(0)
            for q, a, b in zip(levels, edges[:-1], edges[1:], strict=True):
                a = max(a, mpf(0)) if one_sided else a
                if b <= a:
                    continue
                inner = [m + s * t for t in (-40, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 40)]
                cuts = [a, *(c for c in inner if a < c < b), b]
                total += quad(lambda x, q=q, m=m, s=s, f=f: (x - q) ** 2 * f((x - m) / s) / s, cuts)
            yield name, loc, scale, one_sided, low, high, bits, total


def write(name: str, header: list[str], rows: Iterator[tuple[object, ...]], source: str) -> None:
    with (HERE / name).open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*header, "source"])
        for row in rows:
            table.writerow([*(nstr(v, DIGITS) if isinstance(v, mpf) else v for v in row), source])


def main() -> None:
    numeric = "make_golden.py: numerical integration"
    write("prior_tails.csv", ["family", "u", "order", "value"], tail_rows(), numeric)
    header = ["family", "loc", "scale", "one_sided", "low", "high", "bits", "error"]
    write("grid_errors.csv", header, grid_rows(), numeric)
    header = ["family", "relu", "bits", "grid", "clip", "error"]
    write("optimal_clips.csv", header, clip_rows(), numeric + " and golden-section search")


if __name__ == "__main__":
    main()
