"""What the compiled loops promise: the codes of true division, any split over threads, no compilation at import."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qmath
from qmath.kernels import staircase_cells
from qmath.kernels.staircase_cells import cells_of


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = qmath.get_threads()
    qmath.set_threads(request.param)
    yield request.param
    qmath.set_threads(before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_agrees_with_true_division_next_to_every_tie(dtype) -> None:
    rng = np.random.default_rng(0)
    integer = np.dtype(f"i{dtype().itemsize}").type
    for scale in (rng.uniform(1, 2, 40) * 2.0 ** rng.integers(-30, 30, 40)).astype(dtype):
        ties = ((np.arange(-128, 128) + 0.5) * scale).astype(dtype)
        near = (ties.view(integer)[:, None] + np.arange(-3, 4, dtype=integer)).view(dtype).ravel()
        expected = np.clip(np.rint(near / scale), -128, 127)
        np.testing.assert_array_equal(qmath.quantize(near, qmath.Grid(8, scale)), expected)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_threads_do_not_change_a_value(axis, threads) -> None:
    x = np.random.default_rng(0).normal(size=(40, 130, 101)).astype(np.float32)  # several grains
    table = qmath.rounding_table(0.4, 0.5, bits=4)
    scale = 0.2 if axis is None else np.linspace(0.1, 0.4, x.shape[axis])
    grid = qmath.Grid(4, scale, axis=axis)
    shape = [1, 1, 1]
    if axis is not None:
        shape[axis] = -1
    step = np.asarray(scale, np.float32).reshape(shape)
    np.testing.assert_array_equal(qmath.quantize(x, grid), np.clip(np.rint(x / step), -8, 7))
    np.testing.assert_array_equal(qmath.fake_quantize(x, grid), np.clip(np.rint(x / step), -8, 7) * step)
    one = np.stack([table.fake_quantize(part, scale, axis=axis - 1) for part in x]) if axis else None
    if one is not None:
        np.testing.assert_array_equal(table.fake_quantize(x, scale, axis=axis), one)
    assert qmath.get_threads() == threads


@pytest.mark.parametrize("gamma_n", [-1.0, -0.3, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma_s", [None, 0.2, 0.5])
def test_cells_of_a_staircase_agree_with_all_comparisons(gamma_n, gamma_s, monkeypatch) -> None:
    found = 0
    scales = np.array([0.5, 1 / 3, 1e-20, 7e12])
    for bits, signed in itertools.product((2, 3, 4), (True, False)):
        if bits == 2 and not signed:
            continue
        table = qmath.rounding_table(gamma_n, gamma_s, bits=bits, signed=signed)
        edges = table.thresholds(scales, dtype=np.float32)
        found += cells_of(edges, table.codes * scales[:, np.newaxis]) is not None
        special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38]
        near = [np.concatenate([np.nextafter(e, np.float32(end)) for end in (-np.inf, e[0], np.inf)]) for e in edges]
        noise = np.random.default_rng(0).normal(size=(len(scales), 50)) * scales[:, np.newaxis] * 2**bits
        x = np.concatenate([np.tile(special, (len(scales), 1)), edges, near, noise], axis=1).astype(np.float32)
        monkeypatch.setattr(staircase_cells, "in_one_register", lambda: True)
        fast = table.fake_quantize(x, scales, axis=0)
        monkeypatch.setattr(staircase_cells, "in_one_register", lambda: False)
        again = qmath.RoundingTable(bits=bits, signed=signed, edges=table.edges, codes=table.codes)
        expected = again.fake_quantize(x, scales, axis=0)
        np.testing.assert_array_equal(fast, expected)
    assert found or gamma_s is not None


def test_statistics_do_not_depend_on_threads(threads) -> None:
    x = np.random.default_rng(0).normal(size=(600, 5, 301)).astype(np.float32)
    accumulator = qmath.StatisticsAccumulator(channel_axis=1)
    for sample in x[:, None]:
        accumulator.update(sample)
    assert qmath.Statistics.of(x, channel_axis=1) == accumulator.result()


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_thread_counts_are_whole_and_positive(count) -> None:
    with pytest.raises(ValueError, match="whole number of threads"):
        qmath.set_threads(count)


def test_import_needs_neither_numba_nor_scipy() -> None:
    code = "import sys, qmath; sys.exit(bool({'numba', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_kernels_where_nothing_can_be_kept(tmp_path) -> None:
    """Package and home that cannot be written: one warning, and a folder that is gone when the process ends."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(qmath.__file__).parent, tmp_path / "qmath", ignore=ignored)
    (tmp_path / "qmath" / "kernels" / "__pycache__").touch()  # no folder can be made there, not even by root
    (tmp_path / "temporary").mkdir()
    code = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    from qmath.kernels.grid import _level\n"
        "    import qmath.kernels.pareto\n"
        "assert _level(2.6, 1.0, 1.0, 0.0, -8.0, 7.0, False) == 3\n"
        "print(*(warning.message for warning in told), sep='\\n')"
    )
    nowhere = {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull, "TMPDIR": str(tmp_path / "temporary")}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **nowhere, "NUMBA_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    [told] = found.stdout.splitlines()
    assert "set NUMBA_CACHE_DIR to a folder that may be written" in told
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_start_anew_in_a_forked_process() -> None:
    code = (
        "import os, numpy as np, qmath\n"
        "qmath.set_threads(2)\n"
        "x = np.ones(1 << 19, np.float32)\n"
        "run = lambda: qmath.fake_quantize(x, qmath.Grid(4, 1.0)).sum() == x.size\n"
        "assert run()\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(0 if run() else 1)\n"
        "raise SystemExit(os.waitpid(child, 0)[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_every_public_name_is_there() -> None:
    assert set(qmath.__all__) <= set(dir(qmath))
    for name in qmath.__all__:
        assert getattr(qmath, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qmath.nothing  # noqa: B018
