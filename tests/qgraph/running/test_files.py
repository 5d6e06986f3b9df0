"""Files that appear whole, with the rights that the user's umask gives."""

from __future__ import annotations

import os
import sys

import pytest

from qgraph.running.files import write_atomically


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
def test_the_umask_is_kept_and_never_touched(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as watched:
            watched.setattr(os, "umask", lambda mask: pytest.fail("other threads' files would be open to all"))
            write_atomically(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
