"""How long a model and each of its nodes take on one thread, in CPU seconds."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir

from qgraph.running.sessions import Feeds, Session

_CHAIN = 32  # nodes of a model that does nearly nothing
_MOST_RUNS, _SECONDS = 1000, 0.01  # of short models: the most runs, and what they may take
_KERNEL = "_kernel_time"  # behind the name of a node, in a profile


@dataclass(frozen=True, slots=True)
class KernelTime:
    """A node that onnxruntime runs, by name, its operator, and the CPU seconds that one thread spends in it."""

    name: str
    op: str
    seconds: float


def least_seconds(session: Session, feeds: Feeds, *, runs: int, seconds: float = _SECONDS) -> float:
    """The CPU seconds of the shortest of `runs` runs or more, as many as fit into `seconds`; the first warms up.

    In fact of the second shortest: now and then, the clock of a thread stands still.
    """
    _, *took = _times(session.repeated(feeds), runs + 1, seconds)
    return _least_of(took)


def seconds_alone(model: ir.Model | bytes, feeds: Feeds, *, runs: int) -> float:
    """The CPU seconds that all nodes of a model take together, without what a run takes besides them."""
    return max(least_seconds(Session(model, threads=1), feeds, runs=runs) - _empty().seconds(), 0.0)


def _times(run: Callable[[], None], runs: int, seconds: float) -> list[float]:
    """The CPU seconds of `runs` runs or more, as many as fit into `seconds`."""
    took, begun = list[float](), time.thread_time()
    while len(took) < runs or (len(took) < _MOST_RUNS and time.thread_time() - begun < seconds):
        start = time.thread_time()
        run()
        took.append(time.thread_time() - start)
    return took


def _least_of(took: Iterable[float]) -> float:
    return sorted(took)[1]


def kernel_times(model: ir.Model | bytes, feeds: Feeds, *, runs: int) -> list[KernelTime]:
    """The time of every node of the graph that onnxruntime makes of a model, and of those in its bodies.

    onnxruntime's profile tells how long each node took. The least of `runs` or more counts for each of them, as
    other processes only add to it. What profiling itself takes, up to ten microseconds a node, is left out: it is what
    all of them take longer together than the model without a profile, shared equally.

    Raises:
        ModelError: When onnxruntime cannot load or run the model.
    """
    events = _profiled(model, feeds, runs=runs)
    whole = sum(spent for _, spent in events)
    alone = seconds_alone(model, feeds, runs=runs) or whole  # clocks of threads stand still now and then
    profiling = max(whole - alone, 0.0) / max(len(events), 1)
    left = [max(spent - profiling, 0.0) for _, spent in events]
    own = min(alone / max(sum(left), 1e-9), 1.0)
    return [
        KernelTime(e["name"].removesuffix(_KERNEL), e["args"]["op_name"], own * spent)
        for (e, _), spent in zip(events, left, strict=True)
    ]


class _Empty:
    """What a run takes besides its nodes, from chains of one and of many nodes that do nearly nothing.

    They run again whenever the time is asked for, since the first moment may have been a slow one; the least counts.
    """

    def __init__(self) -> None:
        feeds = {"x": np.zeros(1, np.float32)}
        self.runs = {n: Session(_chain(n), threads=1).repeated(feeds) for n in (1, _CHAIN)}
        self.least = dict.fromkeys(self.runs, math.inf)

    def seconds(self) -> float:
        for length, run in self.runs.items():
            self.least[length] = min(self.least[length], _least_of(_times(run, _CHAIN, 0.0)))
        one, many = self.least.values()
        return max(one - (many - one) / (_CHAIN - 1), 0.0)


@cache
def _empty() -> _Empty:
    return _Empty()


def _chain(length: int) -> bytes:
    """A model of so many nodes behind each other, each of which reads a single number."""
    names = ["x", *(f"t{i}" for i in range(length))]
    nodes = " ".join(f"{after} = Max ({before}, x)" for before, after in itertools.pairwise(names))
    return _model(f"chain (float[1] x) => (float[1] {names[-1]}) {{ {nodes} }}")


def _model(graph: str) -> bytes:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}').SerializeToString()


def _profiled(model: ir.Model | bytes, feeds: Feeds, *, runs: int) -> list[tuple[dict[str, Any], float]]:
    """The profile of every node in the run where it took least, and its seconds.

    The clock of a profile is that of the wall: together, nodes take no longer than the thread's own clock tells of the
    shortest run.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(model, threads=1, profile_path=Path(folder) / "profile")
        took = _times(session.repeated(feeds), runs, _SECONDS)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    least = _least(events)
    own = min(1e-6, _least_of(took) / max(sum(spent for _, spent in least), 1))
    return [(event, spent * own) for event, spent in least]


def _least(events: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """A span of every node, and the microseconds that it took in the run where it took least; the first run warms up.

    A node of a body may run several times.
    """
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    nodes: dict[tuple[object, ...], tuple[dict[str, Any], Counter[int]]] = {}
    for event in _innermost(e for e in events if e.get("cat") == "Node"):
        run = bisect(starts, event["ts"]) - 1
        if run > 0:
            _, spent = nodes.setdefault((event["name"], event["args"]["node_index"]), (event, Counter()))
            spent[run] += event["dur"]
    return [(event, min(spent.values())) for event, spent in nodes.values()]


def _innermost(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The spans in kernels that contain no others: bodies of control flow are profiled, and what runs them as well."""
    kernels = (e for e in events if str(e.get("name", "")).endswith(_KERNEL))
    last = None
    for event in sorted(kernels, key=lambda e: (e["ts"], -e["dur"])):
        if last is not None and event["ts"] >= last["ts"] + last["dur"]:
            yield last
        last = event
    if last is not None:
        yield last
