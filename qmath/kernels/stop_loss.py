"""Compiled loops of `qmath.stop_loss`: sums of the stop-loss transform, and branch and bound on the step."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math

import numpy as np

from qmath.kernels.compiled import compiled


@compiled()
def _excess(t, table, lookup, slices):
    """T(t) for t before the last knot; `slices` is the number of entries of `lookup` per unit of t."""
    j = lookup[min(int(t * slices), lookup.size - 1)]
    while table[j + 1, 0] <= t:
        j += 1
    d = t - table[j, 0]
    return max(table[j, 1] - d * (table[j, 2] - 0.5 * d * table[j, 3]), 0.0)


@compiled()
def gain_of_levels(step, levels, table, lookup):
    """sum_{k < levels} T((k + 1/2) step)."""
    end = table[-1, 0]
    if end == 0.0:
        return 0.0
    total, slices = 0.0, lookup.size / end
    for k in range(levels):
        t = (k + 0.5) * step
        if t >= end:
            break
        total += _excess(t, table, lookup, slices)
    return total


@compiled()
def _best_split(step, levels, symmetric, up_table, up_lookup, down_table, down_lookup):
    """(gain, levels above zero, levels below zero) of the best split of `levels`; unused levels go above."""
    if symmetric:
        half = levels // 2
        gain = gain_of_levels(step, half, up_table, up_lookup) + gain_of_levels(step, half, down_table, down_lookup)
        return gain, half, half
    up_end, down_end = up_table[-1, 0], down_table[-1, 0]
    up_slices = up_lookup.size / up_end if up_end > 0.0 else 0.0
    down_slices = down_lookup.size / down_end if down_end > 0.0 else 0.0
    m, n, gain = 0, 0, 0.0
    t = 0.5 * step
    up = _excess(t, up_table, up_lookup, up_slices) if t < up_end else 0.0
    down = _excess(t, down_table, down_lookup, down_slices) if t < down_end else 0.0
    while m + n < levels and (up > 0.0 or down > 0.0):
        if up >= down:
            gain += up
            m += 1
            t = (m + 0.5) * step
            up = _excess(t, up_table, up_lookup, up_slices) if t < up_end else 0.0
        else:
            gain += down
            n += 1
            t = (n + 0.5) * step
            down = _excess(t, down_table, down_lookup, down_slices) if t < down_end else 0.0
    return gain, levels - n, n


@compiled()
def _chord_bound(low, high, at_low, at_high):
    """Maximum of 2 s chord(s) on [low, high], for the chord through (low, at_low) and (high, at_high)."""
    slope = (at_high - at_low) / (high - low)
    start = at_low - slope * low
    bound = max(2 * low * at_low, 2 * high * at_high)
    if slope < 0.0:
        s = -start / (2 * slope)
        if low < s < high:
            bound = max(bound, 2 * s * (start + slope * s))
    return bound


@compiled()
def _push(stack, top, low, high, at_low, at_high):
    stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3] = low, high, at_low, at_high
    return top + 1


@compiled()
def best_step(up_table, up_lookup, down_table, down_lookup, energy, levels, symmetric, gap):
    """The step of least error over (0, 2 max |x|], with its split; see `qmath.stop_loss`.

    Of equally good steps, the one that just spans the data wins. Intervals whose bound cannot beat the best error by
    more than `gap` times that error are dropped, the others halved.
    """
    reach = max(up_table[-1, 0], down_table[-1, 0])
    floor = 0.02 * reach / levels
    points = int(math.log(2 * reach / floor) / 0.1) + 3
    best_step_ = reach / (levels // 2 if symmetric else levels)  # to be beaten: the grid that clips nothing
    gain, best_above, best_below = _best_split(
        best_step_, levels, symmetric, up_table, up_lookup, down_table, down_lookup
    )
    best = 2 * best_step_ * gain + 1e-15 * energy
    stack = np.empty((points + 64, 4))  # intervals: both ends, and the gains there; the last one is halved next
    top = np.int64(0)
    low, at_low = 0.0, _best_split(0.0, levels, symmetric, up_table, up_lookup, down_table, down_lookup)[0]
    for i in range(points - 1):
        high = floor * (2 * reach / floor) ** (i / (points - 2))
        at_high, m, n = _best_split(high, levels, symmetric, up_table, up_lookup, down_table, down_lookup)
        if 2 * high * at_high > best:
            best, best_step_, best_above, best_below = 2 * high * at_high, high, m, n
        top = _push(stack, top, low, high, at_low, at_high)
        low, at_low = high, at_high
    while top > 0:
        top -= 1
        low, high, at_low, at_high = stack[top, 0], stack[top, 1], stack[top, 2], stack[top, 3]
        slack = max(gap * (energy - best), 8e-16 * energy)
        if high - low > 1e-15 * high and _chord_bound(low, high, at_low, at_high) > best + slack:
            middle = 0.5 * (low + high)
            gain, m, n = _best_split(middle, levels, symmetric, up_table, up_lookup, down_table, down_lookup)
            if 2 * middle * gain > best:
                best, best_step_, best_above, best_below = 2 * middle * gain, middle, m, n
            top = _push(stack, top, low, middle, at_low, gain)
            top = _push(stack, top, middle, high, gain, at_high)
    return best_step_, best_above, best_below


@compiled()
def best_ranges(start, stop, ups, downs, levels, symmetric, gap, low, high):
    """The ends of `best_step`'s grid for rows start..stop; 0..0 for an all-zero row.

    `ups` holds the positive values of every row and `downs` the negative ones without their sign, ascending, with zeros
    before them.
    """
    count = ups.shape[1]
    for i in range(start, stop):
        up_table, up_lookup = _side_of(ups[i], count)
        down_table, down_lookup = _side_of(downs[i], count)
        energy = (_squares(ups[i]) + _squares(downs[i])) / count
        low[i], high[i] = 0.0, 0.0
        if energy > 0.0:
            step, m, n = best_step(up_table, up_lookup, down_table, down_lookup, energy, levels, symmetric, gap)
            low[i], high[i] = 0.0 - step * n, step * m


@compiled()
def _squares(values):
    total = 0.0
    for i in range(values.size):
        total += np.float64(values[i]) * values[i]
    return total


@compiled()
def _side_of(values, count):
    """`stop_loss.Side.arrays` of ascending values, each positive one with the weight 1 / count."""
    zeros = 0
    while zeros < values.size and values[zeros] <= 0:
        zeros += 1
    size = values.size - zeros + 1
    table, lookup = np.zeros((size, 4)), np.zeros(2 * size, np.int64)
    for j in range(1, size):
        table[j, 0] = values[zeros + j - 1]
    for j in range(size - 2, -1, -1):
        table[j, 2] = table[j + 1, 2] + 1.0 / count
        table[j, 1] = table[j + 1, 1] + table[j, 2] * (table[j + 1, 0] - table[j, 0])
    j = 0
    for slot in range(1, lookup.size):
        start = table[-1, 0] * slot / lookup.size
        while j + 1 < size and table[j + 1, 0] <= start:
            j += 1
        lookup[slot] = max(j - 1, 0)
    return table, lookup
