"""The loop of `qmath.round_evenly`: codes move one by one while that makes the errors of a channel cancel better."""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled


@compiled()
def settle(start, stop, weight, step, low, high, codes, taps, share, mean, variance, sweeps):
    """Lower the form of the rows start..stop by whole steps of single codes, at most `sweeps` times round.

    Arrays have shape (rows, products), with the `taps` of an input side by side; `mean` and `variance` of the inputs
    have shape (rows, inputs). The sums of the errors of every input and of the row are kept up to date, so that a sweep
    takes as long as rounding.
    """
    products = weight.shape[1]
    for r in range(start, stop):
        sums, total = np.zeros(products // taps), 0.0
        for k in range(products):
            error = codes[r, k] * step[r, k] - weight[r, k]
            sums[k // taps] += error
            total += mean[r, k // taps] * error
        for _ in range(sweeps):
            moved = False
            for k in range(products):
                size, m, v = step[r, k], mean[r, k // taps], variance[r, k // taps]
                form = v + m * m
                error = codes[r, k] * size - weight[r, k]
                slope = v * ((1 - share) * error + share * sums[k // taps]) + m * total
                if form == 0:  # an input that is always 0
                    continue
                wanted = min(max(codes[r, k] - np.rint(slope / (size * form)), low[r, k]), high[r, k])
                change = (wanted - codes[r, k]) * size
                if change * (2 * slope + change * form) < 0:
                    codes[r, k] = wanted
                    sums[k // taps] += change
                    total += m * change
                    moved = True
            if not moved:
                break
