"""The checkpoints of long jobs: whole after a kill, of one process at a time, and never another job's."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qgraph.errors import StoreError
from qgraph.running.store import FILE, Piece, hold, identity, open_store

ARRAYS = {
    "floats": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "none": np.zeros((0, 4), np.int8),
    "one": np.array(7.5),
}


def test_what_was_put_is_there_again_to_the_last_bit(tmp_path):
    content = {"losses": [1 / 3, 1e-300, -0.0], "note": None}
    with open_store(tmp_path, "job", model="a") as store:
        assert store.is_kept
        store.put("x", content, ARRAYS)
        store.put_all({"y": Piece(content=1), "z": Piece(arrays={"floats": ARRAYS["floats"]})})
    with open_store(tmp_path, "job", model="a") as store:
        assert store.done() == {"x", "y", "z"}
        assert store.get("other") is None
        piece = store.get("x")
        assert repr(piece.content) == repr(content)
        for name, array in ARRAYS.items():
            found = piece.arrays[name]
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
        piece.arrays["floats"][:] = 0  # what goes on from it may change it
        assert store.get("x").arrays["floats"].any()
    with open_store(tmp_path, "other stage", model="b") as store:
        assert store.done() == set()


def test_a_piece_takes_the_place_of_the_one_before(tmp_path):
    with open_store(tmp_path, "job") as store:
        store.put("x", 1, ARRAYS)
        store.put("x", 2, {"one": np.array(3)})
        assert store.get("x").content == 2
        assert set(store.get("x").arrays) == {"one"}


def test_long_arrays_lie_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("qgraph.running.store._BLOCK", 16)
    with open_store(tmp_path, "job") as store:
        store.put("x", None, ARRAYS)
        np.testing.assert_array_equal(store.get("x").arrays["floats"], ARRAYS["floats"])


def test_without_a_folder_pieces_are_in_memory():
    with open_store(None, "job", model="a") as store:
        assert not store.is_kept
        store.put("x", 1)
        assert store.get("x").content == 1
    with hold(None), open_store(None, "job", model="b") as store:
        assert store.done() == set()


def test_threads_share_a_store(tmp_path):
    with hold(tmp_path), ThreadPoolExecutor(8) as pool, open_store(tmp_path, "job") as store:
        list(pool.map(lambda i: store.put(str(i), i, ARRAYS), range(100)))
        assert sorted(store.get(key).content for key in store.done()) == list(range(100))


HOLDER = """
import sys, time
from pathlib import Path
from qgraph.running.store import hold, open_store
with hold(sys.argv[1]), open_store(sys.argv[1], "job") as store:
    print("held", flush=True)
    number = 0
    while len(sys.argv) > 2:
        store.put(f"{number}", number)
        store.put("state", number, {"x": __import__("numpy").full(30_000, number)})
        print(number, flush=True)
        number += 1
    time.sleep(600)
"""


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_second_process_is_told_that_the_first_still_works(tmp_path):
    with child(tmp_path) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="is in use by another process: wait until it ends"), hold(tmp_path):
            pass
        other.kill()
    with hold(tmp_path):
        pass


def test_killed_at_any_moment_all_that_was_reported_is_whole(tmp_path):
    """SIGKILL while it writes: every piece of which `put` returned is there, and the last one is whole or not there."""
    for turn, lines in enumerate((1, 2, 5, 9, 20)):
        folder = tmp_path / str(turn)
        with child(folder, "write") as other:
            assert other.stdout.readline() == "held\n"
            said = [int(other.stdout.readline()) for _ in range(lines)]
            other.send_signal(signal.SIGKILL)
            said += [int(line) for line in other.stdout.read().split("\n") if line]
        with open_store(folder, "job") as store:
            assert {str(number) for number in said} <= store.done()
            state = store.get("state")
            assert state.content in (said[-1], said[-1] + 1)
            assert (state.arrays["x"] == state.content).all()


def test_a_lock_is_free_again_in_the_same_process(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), hold(tmp_path):
            raise KeyError
    assert not list(tmp_path.glob(f"{FILE}-*"))


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "text":
        data[:] = b"not a database, but long enough to be looked at as one" * 40
    elif how == "head":
        data[:100] = bytes(100)
    else:
        data[how % len(data)] ^= 0xFF
    path.write_bytes(data)


def read_or_refused(folder):
    """All pieces, or the message."""
    try:
        with open_store(folder, "job", model="a") as store:
            return {key: store.get(key) for key in store.done()}
    except StoreError as error:
        return str(error)


@pytest.mark.parametrize("how", ["cut", "text", "head", *np.random.default_rng(1).integers(0, 1 << 20, 60).tolist()])
def test_damage_is_refused_or_does_no_harm(tmp_path, how):
    """One message that names the file, or the very pieces that were written."""
    written = {str(i): Piece(content=i / 3, arrays={"x": np.full(40, i)}) for i in range(200)}
    with open_store(tmp_path, "job", model="a") as store:
        store.put_all(written)
    damage(tmp_path / FILE, how)
    found = read_or_refused(tmp_path)
    if isinstance(found, str):
        assert str(tmp_path / FILE) in found
        assert "resume" in found
        return
    assert how not in ("cut", "text", "head")
    for key, piece in found.items():
        assert piece.content == written[key].content
        np.testing.assert_array_equal(piece.arrays["x"], written[key].arrays["x"])


def test_a_changed_array_is_noticed(tmp_path):
    with open_store(tmp_path, "job") as store:
        store.put("x", None, ARRAYS)
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("UPDATE arrays SET data = zeroblob(60) WHERE name = 'floats'")
    file.close()
    with open_store(tmp_path, "job") as store, pytest.raises(StoreError, match="is damaged: its piece 'x'"):
        store.get("x")


def test_another_programs_database_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / FILE) as file:
        file.execute("CREATE TABLE pieces (mine)")
    file.close()
    with pytest.raises(StoreError, match="was not written by qgraph"), hold(tmp_path):
        pass
    with sqlite3.connect(tmp_path / FILE) as file:
        assert file.execute("SELECT name FROM sqlite_schema").fetchall() == [("pieces",)]
    file.close()


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the checkpoints"), hold(tmp_path / "file"):
        pass


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    names: tuple[str, ...] = ("a", "b")


class Data:
    digest = "d1"


def test_identity_is_equal_where_all_is_equal():
    of = {"settings": Settings(0.1), "data": Data(), "x": ARRAYS["floats"], "menu": {"layer": [Settings(1.0)]}}
    same = identity(**of)
    assert same == identity(**of)
    assert same["data"] == '"d1"'
    assert same["settings"] == '{"names": ["a", "b"], "rate": 0.1}'
    assert len(identity(plan="p" * 10_000)["plan"]) == 64
    changed = ARRAYS["floats"].copy()
    changed[2, 4] += 1e-7
    others = {"settings": Settings(0.1 + 1e-17 + 1e-16), "x": changed, "menu": {"layer": [Settings(1.0, ())]}}
    for name, value in others.items():
        assert identity(**(of | {name: value}))[name] != same[name]
    with pytest.raises(TypeError, match="a lock has no description of its content"):
        identity(model=threading.Lock())
