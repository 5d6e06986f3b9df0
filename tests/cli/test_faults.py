"""What goes wrong around the tool: full disks, kills, two writers, data that raise. Nothing is left half-written."""

from __future__ import annotations

import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from kills import LONG_JOBS, LongJob, start, wait_for

import qgraph
from qgraph.cli import main
from qgraph.errors import ModelError
from qgraph.jobs.sensitivity import measure_sensitivity
from qgraph.methods.zeroq.distill import DistillConfig, distill

DISTILL = ("--steps", "100", "--count", "32", "--seed", "3", "--threads", "1", "--quiet")


@contextmanager
def largest_file(size: int):
    """No file may grow beyond `size` bytes: writing fails as it does on a full disk, in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def small(digits) -> qgraph.Result:
    return qgraph.quantize(digits, method="minmax", weights=8, activations=None)


def test_a_disk_that_fills_up(small, tmp_path):
    with largest_file(4096), pytest.raises(ModelError, match=r"cannot write .*out\.onnx"):
        small.save(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_old_output_survives_a_full_disk(small, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_bytes(b"old")
    with largest_file(4096), pytest.raises(ModelError):
        small.save(out)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_an_output_on_another_file_system(small, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    out = other / f"qgraph-test-{os.getpid()}.onnx"
    try:
        assert small.save(out) == out.stat().st_size
        onnx.checker.check_model(str(out), full_check=True)
    finally:
        out.unlink(missing_ok=True)


def test_two_writers_of_one_output(digits, small, tmp_path):
    """One of the two wins, whole."""
    four = qgraph.quantize(digits, method="minmax", weights=4, activations=None)
    out, wanted = tmp_path / "out.onnx", set()
    for index, result in enumerate((small, four)):
        result.save(tmp_path / f"{index}.onnx")
        wanted.add((tmp_path / f"{index}.onnx").read_bytes())
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            list(pool.map(lambda result: result.save(out), (small, four)))
            assert out.read_bytes() in wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.onnx", "1.onnx", "out.onnx"]


def test_data_that_raise(digits, tmp_path):
    def batches():
        yield np.zeros((4, 1, 8, 8), np.float32)
        raise ConnectionError("the camera is gone")

    with pytest.raises(ConnectionError, match="the camera is gone"):
        qgraph.quantize(digits, data=batches(), method="minmax")


def test_termination_leaves_nothing_behind(digits, tmp_path):
    """SIGTERM in the middle of distilling: status 143, as the shell has it, and no file of any kind but checkpoints."""
    checkpoints = tmp_path / "checkpoints"
    job = start("quantize", digits, "-o", tmp_path / "out.onnx", "--resume", checkpoints)
    wait_for(lambda: checkpoints.exists(), job)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def kill_and_resume(digits: Path, folder: Path, moments: list[float], expected: bytes) -> None:
    """Distil with a kill -9 that many seconds after the first checkpoint, again and again: no file or a whole one."""
    out, checkpoints = folder / "data.npz", folder / "checkpoints"
    for seconds in moments:
        job = start("distill", digits, "-o", out, "--resume", checkpoints, *DISTILL)
        wait_for(lambda: checkpoints.exists(), job)
        time.sleep(seconds)
        job.kill()
        job.wait()
        assert not out.exists() or _content(out) == expected
    assert start("distill", digits, "-o", out, "--resume", checkpoints, *DISTILL).wait() == 0
    assert _content(out) == expected


def test_killed_and_resumed_gives_the_same_data(digits, tmp_path):
    assert start("distill", digits, "-o", tmp_path / "whole.npz", *DISTILL).wait() == 0
    kill_and_resume(digits, tmp_path, [0.4], _content(tmp_path / "whole.npz"))


@pytest.mark.slow
def test_killed_at_many_moments(digits, tmp_path):
    assert start("distill", digits, "-o", tmp_path / "whole.npz", *DISTILL).wait() == 0
    moments = np.random.default_rng(0).uniform(0, 2, 50).tolist()
    for index in range(0, 50, 2):
        folder = tmp_path / str(index)
        folder.mkdir()
        kill_and_resume(digits, folder, moments[index : index + 2], _content(tmp_path / "whole.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG_JOBS)
def test_long_jobs_killed_at_many_moments(digits, digits_calibration, tmp_path, name):
    """Killed twice each time, at moments from the first checkpoint to beyond the end: the same bytes as undisturbed."""
    job = LongJob(name, digits, digits_calibration, tmp_path)
    moments = np.random.default_rng(0).uniform(0, job.seconds, (10, 2)).tolist()
    kills = [kill for label, pair in enumerate(moments) for kill in job.kill(label, pair)]
    assert all(kill.same for kill in kills)
    assert any(kill.hit for kill in kills)


def test_a_folder_that_is_read_only(digits, digits_calibration, small, tmp_path):
    """Said before any work is done, by every command that writes, and by the writing itself."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("nothing is read-only to root")
    data = str(digits_calibration)
    for command in (
        ["quantize", "--data", data],
        ["search", "--data", data],
        ["finetune", "--data", data],
        ["distill"],
    ):
        verb, *options = command
        assert main([verb, str(digits), "-o", str(folder / "out"), *options]) == 1
    with pytest.raises(ModelError, match="permission denied"):
        small.save(folder / "out.onnx")
    folder.chmod(0o755)
    assert list(folder.iterdir()) == []


def test_two_processes_write_one_output(digits, tmp_path):
    """One of the two wins, whole, and nothing else is left."""
    out = tmp_path / "out.onnx"
    command = ("quantize", digits, "--activations", "none", "--method", "minmax", "--quiet")
    jobs = [start(*command, "--weights", bits, "-o", out) for bits in (8, 4)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    wanted = []
    for bits in (8, 4):
        qgraph.quantize(digits, method="minmax", weights=bits, activations=None).save(tmp_path / "one")
        wanted.append((tmp_path / "one").read_bytes())
    assert out.read_bytes() in wanted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "out.onnx"]


def quantized(model, data, threads):
    return qgraph.quantize(model, data, limit=64, weights=4, threads=threads).model


def distilled(model, data, threads):
    samples = distill(model, count=8, config=DistillConfig(steps=20), seed=1, threads=threads).inputs
    return b"".join(array.tobytes() for array in samples.values())


def compared(model, data, threads):
    return measure_sensitivity(model, data, limit=16, bits=(2, 4), threads=threads).to_json().encode()


def searched(model, data, threads):
    config = qgraph.SearchConfig(ingredients=("bias",), seed=1)
    found = qgraph.search(model, data, limit=32, weights=3, activations=4, config=config, threads=threads)
    return found.plan.to_json().encode()


def finetuned(model, data, threads):
    config = qgraph.LsqPlusConfig(epochs=1, batch=32, calibration=32)
    return qgraph.finetune(
        model, data, limit=96, weights=3, config=config, seed=1, threads=threads, measure=False
    ).model


@pytest.mark.parametrize("job", [quantized, distilled, compared, searched, finetuned], ids=lambda job: job.__name__)
def test_the_same_bytes_on_any_number_of_threads(digits, digits_calibration, job):
    seen = set()
    for threads in (1, 2, 2):
        made = job(digits, digits_calibration, threads)
        seen.add(made if isinstance(made, bytes) else ir.to_proto(made).SerializeToString(deterministic=True))
    assert len(seen) == 1


def _content(archive: Path) -> bytes:
    """The arrays of an .npz; the archive itself carries the time of writing."""
    with np.load(archive) as arrays:
        return b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays))
