"""Plain and compiled loops of grids fill the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import qmath
from qmath.kernels import grid as compiled
from qmath.kernels import plain
from qmath.kernels.rows import run_rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("half_up", [False, True])
@pytest.mark.parametrize("shape", [(40, 7, 300), (900, 7)])
def test_plain_loops_fill_the_same_bits_as_compiled_ones(dtype, half_up, shape):
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.01, 3.0, 7).astype(np.float32)
    grid = qmath.Grid(scale=scale, zero_point=np.arange(7), bits=4, axis=1, signed=False)
    steps = rng.integers(-20, 40, shape) * 0.5 + rng.integers(-3, 4, shape) * np.finfo(dtype).eps
    x = (steps * scale.reshape(-1, *[1] * (len(shape) - 2))).astype(dtype)  # on ties, and next to them
    x.flat[5] = np.inf
    for kind, values in (("values", dtype), ("codes", np.uint8)):
        results = []
        for loops in (plain, compiled):
            out = np.empty(shape, values)
            by_row, by_column = getattr(loops, f"{kind}_by_row"), getattr(loops, f"{kind}_by_column")
            parameters = qmath.grid._parameters(grid, np.dtype(dtype))
            run_rows(by_row, by_column, x, out, 1, parameters, half_up, channels=7)
            results.append(out.tobytes())
        assert results[0] == results[1]


def test_compiled_loops_take_over_from_plain_ones(monkeypatch):
    monkeypatch.setattr(plain, "_left", 10)
    assert not plain.pays_to_compile(6)
    assert plain.pays_to_compile(6)
