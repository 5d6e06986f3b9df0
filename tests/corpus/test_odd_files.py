"""Files of random networks keep what their networks compute and stay small, or a warning has the figure."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from judge import anonymous, session, sqnr_db
from random_nets import random_net

import qgraph
from qgraph.errors import QGraphError, QualityWarning

GRAPHS, PARTS = 2000, 20
EVERY = 50  # of the graphs are tried where all of them would take too long
CLOSE_DB = 25.0


def faults(seeds) -> list[str]:
    """What is wrong with the files of these networks, by seed."""
    found = []
    for seed in seeds:
        model, feeds = random_net(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = qgraph.quantize(model, [feeds], threads=1)
            except QGraphError:
                continue  # `test_nets` judges refusals
        said = " ".join(str(w.message) for w in caught if w.category is QualityWarning)
        small = ir.to_proto(result.model)
        found += [f"seed {seed}: {fault}" for fault in _unsaid(model, small, feeds, said)]
    return found


def _unsaid(model: onnx.ModelProto, small: onnx.ModelProto, feeds, said: str) -> Iterator[str]:
    """The faults of a file that no warning has the figure of."""
    if small.ByteSize() > model.ByteSize() and f"{small.ByteSize():,} bytes" not in said:
        yield f"{small.ByteSize()} bytes, {model.ByteSize()} in floats"
    pairs = zip(*(session(anonymous(m)).run(None, dict(feeds)) for m in (model, small)), strict=True)
    for output, (want, have) in zip(model.graph.output, pairs, strict=True):
        floats = isinstance(want, np.ndarray) and want.dtype.kind == "f" and np.isfinite(want).any() and want.any()
        if floats and sqnr_db(want, have) < CLOSE_DB and " dB" not in said:
            yield f"output '{output.name}' at {sqnr_db(want, have):.1f} dB"


@pytest.mark.parametrize("first", range(0, EVERY, EVERY // 2))
def test_some_files(first):
    """A sample of the graphs that the slow test tries."""
    assert not faults(range(first, GRAPHS, 2 * EVERY))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_files(part):
    assert not faults(range(part, GRAPHS, PARTS))
