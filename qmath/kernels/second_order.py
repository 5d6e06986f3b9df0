"""Loops of second-order rounding: columns in turn with errors passed on, then descent code by code."""

# mypy: disable-error-code="no-untyped-def, call-arg"
from __future__ import annotations

import numpy as np

from qmath.kernels.compiled import compiled

_TILE = 16  # rows that share a pass over the factor


@compiled()
def round_columns(start, stop, upper, weight, scale, low, high, codes):
    """Round the rows start..stop of `weight` column after column; each error is spread over the columns to come.

    `upper` (groups, K, K) holds the factors U with H^-1 = U^T U, of consecutive groups of rows; `weight` (rows, K) is
    overwritten. `scale`, `low` and `high` (rows, K) are the step and the range of codes of every weight.
    """
    groups, columns, _ = upper.shape
    share = weight.shape[0] // groups
    first = start
    while first < stop:
        group = first // share
        last = min(first + _TILE, stop, (group + 1) * share)
        for j in range(columns):
            spread = upper[group, j]
            for r in range(first, last):
                value, step = weight[r, j], scale[r, j]
                code = min(max(np.rint(value / step), low[r, j]), high[r, j])
                codes[r, j] = code
                error = (value - code * step) / spread[j]
                row = weight[r]
                for k in range(j + 1, columns):
                    row[k] -= error * spread[k]
        first = last


@compiled()
def descend(start, stop, hessian, gradient, scale, low, high, codes, sweeps):
    """Move single codes of the rows start..stop while that lowers their quadratic form, at most `sweeps` times round.

    `gradient` (rows, K) is H (scale codes - target), kept up to date. A code moves by the whole number of steps nearest
    to the minimum along its axis, so that the form never rises.
    """
    groups, columns, _ = hessian.shape
    share = codes.shape[0] // groups
    for r in range(start, stop):
        form, slope = hessian[r // share], gradient[r]
        for _ in range(sweeps):
            moved = False
            for j in range(columns):
                step = scale[r, j]
                wanted = codes[r, j] - np.rint(slope[j] / (step * form[j, j]))
                change = min(max(wanted, low[r, j]), high[r, j]) - codes[r, j]
                if change * (2 * slope[j] + change * step * form[j, j]) < 0:
                    moved = True
                    codes[r, j] += change
                    for k in range(columns):
                        slope[k] += change * step * form[j, k]
            if not moved:
                break
