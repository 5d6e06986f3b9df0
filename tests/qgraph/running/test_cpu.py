"""What is said of a processor, and what is not."""

from __future__ import annotations

import pytest

from qgraph.running import cpu


@pytest.mark.parametrize(
    ("flags", "fast"), [({"avx2"}, False), ({"avx2", "avx_vnni"}, True), ({"asimddp"}, True), (set(), None)]
)
def test_flags_that_cannot_be_read_say_nothing(monkeypatch, flags, fast):
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags))
    assert cpu.has_fast_integers() is fast
