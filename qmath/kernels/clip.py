"""Compiled searches of `qmath.empirical_clipping`: least squared error over the step, KL over windows of bins."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled


@compiled()
def least_squares_clips(rows, top):
    """Clip per row (C-contiguous float32 or float64) of the symmetric grid with codes -top..top; 1 for zeros."""
    clips = np.ones(rows.shape[0])
    values = np.empty(rows.shape[1])
    for i in range(rows.shape[0]):
        n = 0
        for x in rows[i]:
            if x != 0.0:
                values[n] = abs(x)
                n += 1
        if n > 0:
            clips[i] = top * least_squares_step(values[:n], top)
    return clips


@compiled()
def least_squares_step(a, top):
    """The step s > 0 minimising sum_i min_{0 <= k <= top} (a_i - k s)^2 over positive a: exact, in linear time.

    With v = 1/s rising from zero, element i passes from code k to k + 1 at v = (k + 1/2) / a_i: an event. Between
    events the error is a parabola, A - 2 s B + s^2 C with A = sum a^2, B = sum a k, C = sum k^2, never below A - B^2 /
    C; and since the error takes the best codes everywhere, its minimum is A - max B^2 / C over the states between
    events. Events are first added up in buckets of v. Inside a bucket that spans [s1, s0] the error is at least that of
    its opening codes, A - B^2 / C, less the gain of its own events at s1, 2 s1 dB - s1^2 dC; only buckets that could
    hold the maximum are sorted. The time is linear in the number of events.
    """
    energy = np.sum(a * a)
    start = 0.5 / np.max(a)
    stop = _largest_inverse_step(a, top)
    buckets = int(max(512, 2 * stop / start, min(a.size, 8192)))  # none wider than `start`, so that s0 <= 2 s1
    scale = buckets / (stop - start)
    db, dc = np.zeros(buckets), np.zeros(buckets)
    for x in a:
        inverse = 1.0 / x
        for k in range(top):
            place = ((k + 0.5) * inverse - start) * scale
            if place >= buckets:  # before the cast: the place of a tiny value overflows an integer
                break
            at = int(place)
            db[at] += x
            dc[at] += 2 * k + 1
    opening_b, opening_c, best, best_step = _scan_buckets(db, dc)
    first, last = buckets, -1
    marked = np.zeros(buckets, np.bool_)
    for j in range(buckets):
        s1 = 1.0 / (start + (j + 1) / scale)
        floor = opening_b[j] ** 2 / opening_c[j] if opening_c[j] > 0 else 0.0
        if dc[j] > 0 and floor + 2 * s1 * db[j] - s1 * s1 * dc[j] > best - 1e-14 * energy:
            marked[j] = True
            first, last = min(first, j), j
    return _sorted_search(a, top, start, scale, marked, first, last, opening_b, opening_c, best, best_step)


@compiled()
def _largest_inverse_step(a, top):
    """1/s beyond which the values clipped alone cost more than the best error found: no finer step can be optimal."""
    s = np.max(a) / top
    best = np.inf
    while True:
        error, clipped = 0.0, 0.0
        inverse, limit = 1.0 / s, top * s
        for x in a:
            code = np.floor(x * inverse + 0.5)
            d = x - s * min(code, top)
            error += d * d
            over = max(x - limit, 0.0)
            clipped += over * over
        best = min(best, error)
        if clipped > best:
            return inverse
        if best == 0.0:
            return inverse * (1 + 1e-12)  # no finer step beats an error of zero
        s *= 0.9


@compiled()
def _scan_buckets(db, dc):
    """B and C at the start of every bucket, and the largest B^2 / C among them with its step B / C."""
    opening_b, opening_c = np.empty(db.size), np.empty(db.size)
    b, c, best, best_step = 0.0, 0.0, 0.0, 0.0
    for j in range(db.size):
        opening_b[j], opening_c[j] = b, c
        b += db[j]
        c += dc[j]
        if c > 0 and b * b / c > best:
            best, best_step = b * b / c, b / c
    return opening_b, opening_c, best, best_step


@compiled()
def _sorted_search(a, top, start, scale, marked, first, last, opening_b, opening_c, best, best_step):
    """The best state among all events of the marked buckets, taken in order."""
    count = 0
    for fill in range(2):  # count the events, then store them
        if fill:
            at_v, add_b, add_c = np.empty(count), np.empty(count), np.empty(count)
            bucket = np.empty(count, np.int64)
        count = 0
        for x in a:
            inverse = 1.0 / x
            k = max(int((start + first / scale) * x - 1.5), 0)
            while k < top:
                v = (k + 0.5) * inverse
                place = (v - start) * scale
                if place >= last + 1:
                    break
                j = int(place)
                if j >= first and marked[j]:
                    if fill:
                        at_v[count], add_b[count], add_c[count], bucket[count] = v, x, 2 * k + 1, j
                    count += 1
                k += 1
    now, b, c = -1, 0.0, 0.0
    for e in np.argsort(at_v):
        if bucket[e] != now:
            now = bucket[e]
            b, c = opening_b[now], opening_c[now]
        b += add_b[e]
        c += add_c[e]
        if b * b / c > best:
            best, best_step = b * b / c, b / c
    return best_step


@compiled()
def window_divergence(low, high, levels, mass, filled, counts, entropy):
    """KL(P || Q) of bins [low, high), infinite when an end bin is empty (Migacz, 2017).

    P adds the outliers to its end bins. Q leaves them out, and spreads each of `levels` groups of bins evenly over the
    non-empty bins of the group. `mass`, `filled` and `entropy` are prefix sums of the counts c, of [c > 0] and of c log
    c.
    """
    before, after = mass[low], mass[-1] - mass[high]
    total, inside = mass[-1], mass[high] - mass[low]
    if inside == 0 or (before > 0 and counts[low] == 0) or (after > 0 and counts[high - 1] == 0):
        return np.inf
    sum_p_log_p = entropy[high] - entropy[low]
    for end, extra in ((low, before), (high - 1, after)):
        if extra > 0:
            c = counts[end]
            sum_p_log_p += (c + extra) * np.log(c + extra) - c * np.log(c)
    sum_p_log_q = 0.0
    left = low
    for g in range(levels):
        right = low + ((g + 1) * (high - low)) // levels
        group = mass[right] - mass[left]
        if group > 0:
            p = group + (before if g == 0 else 0.0) + (after if g == levels - 1 else 0.0)
            sum_p_log_q += p * np.log(group / (filled[right] - filled[left]))
        left = right
    return (sum_p_log_p - sum_p_log_q) / total - np.log(total / inside)


@compiled()
def best_window(counts, levels, zero, two_ended):
    """(low, high) of the window of bins around `zero` with the least divergence.

    The high end moves, or both in turn if `two_ended`.
    """
    mass, filled, entropy = np.zeros(counts.size + 1), np.zeros(counts.size + 1), np.zeros(counts.size + 1)
    for i in range(counts.size):
        c = counts[i]
        mass[i + 1] = mass[i] + c
        filled[i + 1] = filled[i] + (1.0 if c > 0 else 0.0)
        entropy[i + 1] = entropy[i] + (c * np.log(c) if c > 0 else 0.0)
    low, high = 0, counts.size
    best = window_divergence(low, high, levels, mass, filled, counts, entropy)
    for _ in range(4 if two_ended else 1):
        was_low, was_high = low, high
        for end in range(max(zero + 1, low + levels), counts.size + 1):
            value = window_divergence(low, end, levels, mass, filled, counts, entropy)
            if value < best:
                best, high = value, end
        if two_ended:
            for begin in range(min(zero, high - levels) + 1):
                value = window_divergence(begin, high, levels, mass, filled, counts, entropy)
                if value < best:
                    best, low = value, begin
        if low == was_low and high == was_high:
            break
    return low, high
