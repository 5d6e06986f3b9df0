"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, settings

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the benchmarks are beside the tests, not installed

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in background jobs, and their children do

if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))  # each of several workers keeps to one core, and so do its children
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

settings.register_profile("qgraph", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qgraph")

DEMO = Path(str(files("qgraph") / "demo_assets"))


@pytest.fixture(autouse=True)
def same_numbers(request: pytest.FixtureRequest) -> None:
    """Let every test draw the same from its module's generator `RNG`, whatever ran before it."""
    generator = getattr(request.module, "RNG", None)
    if generator is not None:
        kind, seed = type(generator.bit_generator), generator.bit_generator.seed_seq
        generator.bit_generator.state = kind(seed).state


@pytest.fixture(autouse=True)
def no_latency_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep integers that happen to be slow on this machine: what is tested does not depend on how busy it is."""
    monkeypatch.setattr("qgraph.jobs.no_slower.SLOWER", float("inf"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of large models and data that development machines keep beside the checkout."""
    path = Path(os.environ.get("QGRAPH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (path / "models").is_dir():
        pytest.skip(f"needs the shared models and data at {path} (or in $QGRAPH_SHARED)")
    return path


@pytest.fixture(scope="session")
def digits() -> Path:
    """The packaged demo network."""
    return DEMO / "digits.onnx"


@pytest.fixture(scope="session")
def digits_calibration() -> Path:
    return DEMO / "digits_calibration.npz"


@pytest.fixture(scope="session")
def digits_test() -> Path:
    return DEMO / "digits_test.npz"


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """`dask:ADDRESS` of a cluster of two processes, each of one thread."""
    distributed = pytest.importorskip("distributed", reason='needs the extra: pip install ".[dask]"')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as running:
        yield f"dask:{running.scheduler_address}"


@pytest.fixture(scope="session")
def pieces_in() -> Callable[[Path, str], int]:
    """How many pieces whose "STAGE KEY" begins so a folder has, which another process may be writing."""

    def count(folder: Path, prefix: str) -> int:
        with tempfile.TemporaryDirectory() as copies:
            for path in sorted(folder.glob("checkpoints.sqlite*"), reverse=True):
                with contextlib.suppress(FileNotFoundError):  # a journal is gone when its transaction ends
                    shutil.copy(path, copies)
            try:
                file = sqlite3.connect(Path(copies) / "checkpoints.sqlite")
                query = "SELECT count(*) FROM pieces WHERE stage || ' ' || key LIKE ?"
                found = file.execute(query, (f"{prefix}%",)).fetchone()[0]
                file.close()
            except sqlite3.Error:
                return 0
        return int(found)

    return count


@pytest.fixture
def model_from_text():
    """Build a checked ONNX model from its textual form and initial values for its initializers."""

    def build(text: str, **weights: np.ndarray) -> onnx.ModelProto:
        model = ir.from_onnx_text(text)
        for name, array in weights.items():
            value = ir.Value(name=name, shape=ir.Shape(array.shape), const_value=ir.tensor(array, name=name))
            value.dtype = ir.DataType.from_numpy(array.dtype)
            placeholder = next((v for v in model.graph.inputs if v.name == name), None)
            if placeholder is not None:
                model.graph.inputs.remove(placeholder)
                placeholder.replace_all_uses_with(value, replace_graph_outputs=True)
            model.graph.register_initializer(value)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto, full_check=True)
        return proto

    return build


@pytest.fixture
def agreement(tmp_path):
    """Quantize a model, check the file, and compare what both compute: the decibels of the worst output of floats.

    Other outputs must be equal. `feeds` are the samples as well, unless `data` are given.
    """
    import onnxruntime as ort

    import qgraph

    def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], data: object = None, **options: object) -> float:
        path = tmp_path / "quantized.onnx"
        chosen = {"method": "minmax", "measure": False} | options
        qgraph.quantize(proto, feeds if data is None else data, **chosen).save(path)
        written = onnx.load(path)
        onnx.checker.check_model(written)
        assert [o.name for o in written.graph.output] == [o.name for o in proto.graph.output]
        assert [i.name for i in written.graph.input if i.name in feeds] == [*feeds]
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        both = [ort.InferenceSession(m.SerializeToString(), settings).run(None, feeds) for m in (proto, written)]
        worst = float("inf")
        for expected, found in zip(*both, strict=True):
            if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
                noise = np.square(expected.astype(np.float64) - found).sum()
                signal = np.square(expected.astype(np.float64)).sum()
                worst = min(worst, 10 * np.log10(signal / noise) if noise else float("inf"))
            elif isinstance(expected, np.ndarray):
                assert np.array_equal(expected, found)
            else:
                assert len(expected) == len(found)
        return worst

    return run
