"""Ranges, moments and histograms of activations, in one streaming pass.

Memory is bounded by one batch, with the tensors of all steps of its loops. The result does not depend on how samples
are batched or ordered: histograms count in power-of-two bins, sums are exact (`qmath.StatisticsAccumulator`).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import qmath
from qgraph.errors import DataError, ModelError
from qgraph.graph.layers import Layer, present
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.model import Model
from qgraph.running.executor import LOCAL, SentWithoutCaches, open_executor
from qgraph.running.files import write_atomically
from qgraph.running.outputs import arrays_of
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session, in_parallel
from qgraph.running.wording import option
from qgraph.samples.dataset import Batch, Dataset

RUN_BYTES = 64 * 2**20  # of activations that are held at once, where more than one sample is run
MAX_BATCH = 32
AHEAD = 64  # batches in flight on a cluster
_ALONG = " along axis "


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Observations:
    """Statistics of named tensors over `count` samples of one model."""

    model: str
    count: int
    tensors: Mapping[str, qmath.Statistics]

    def __repr__(self) -> str:
        return f"Observations({len(self.tensors)} tensors over {self.count:,} samples)"

    def __getitem__(self, tensor: str) -> qmath.Statistics:
        try:
            return self.tensors[tensor]
        except KeyError:
            raise DataError(f"the calibration has no statistics of '{tensor}': observe the model again") from None

    def check_model(self, model: Model) -> None:
        """Raise `DataError` unless the statistics are of this model."""
        if model.digest != self.model:
            raise DataError(
                f"the calibration file was made for another model ({self.model[:12]}...), not for {model.source} "
                f"({model.digest[:12]}...); delete it or name another file"
            )

    def operand(self, layer: Layer) -> qmath.Statistics:
        """Statistics of the tensor that a layer reads, with those of its channels along the axis that it sums over."""
        name, axis = layer.operand_channels
        other = _along(name, axis)
        found = self.tensors[other] if other in self.tensors else self[name]
        if found.channels is not None and np.size(found.channels.mean) not in (0, layer.input_channels):
            raise DataError(
                f"'{layer.name}' sums over {layer.input_channels} channels of '{name}', but the data gave "
                f"{np.size(found.channels.mean)}: give {option('data')} in batches of the size that the model "
                f"needs"
            )
        return found

    def range_of(self, tensor: str) -> tuple[float, float]:
        """Observed minimum and maximum; (0, 0) for a tensor that was always empty."""
        statistics = self[tensor]
        return (float(statistics.min), float(statistics.max)) if statistics.count else (0.0, 0.0)

    @property
    def sample_bytes(self) -> int:
        """Bytes of all tensors for one sample, in float32."""
        values = {name.split(_ALONG)[0]: statistics.count for name, statistics in self.tensors.items()}
        return 4 * sum(values.values()) // max(self.count, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to an .npz file that `load` reads back exactly."""
        buffer = io.BytesIO()
        content = {name: statistics.to_dict() for name, statistics in self.tensors.items()}
        text = json.dumps({"model": self.model, "count": self.count, "tensors": content})
        np.savez_compressed(buffer, observations=np.frombuffer(text.encode(), np.uint8))
        try:
            write_atomically(Path(path), buffer.getvalue())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Observations:
        """Read what `save` wrote; raises `DataError` for any other file."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                raw = json.loads(archive["observations"].tobytes())
            tensors = {name: qmath.Statistics.from_dict(d) for name, d in raw["tensors"].items()}
            return cls(model=raw["model"], count=raw["count"], tensors=tensors)
        except Exception as error:
            raise DataError(f"{path} is not a calibration file: {error}; delete it to calibrate again") from error


def watched_tensors(view: GraphView) -> dict[str, int | None]:
    """Every tensor that a plan may quantize, with the axis of its channels if a layer reads it (otherwise None).

    A tensor that layers read along several axes appears once more for each further axis, under a name made by `_along`.
    """
    watched: dict[str, int | None] = {site.tensor: None for site in view.activation_sites(view.observed)}
    for name, axis in (layer.operand_channels for layer in view.observed):
        first = watched.get(name)
        watched[name if first is None or first == axis else _along(name, axis)] = axis
    return watched


def _along(tensor: str, axis: int) -> str:
    return f"{tensor}{_suffix(axis)}"


def _suffix(axis: int | None) -> str:
    return f"{_ALONG}{axis}"


def observe(
    model: Model,
    data: Dataset,
    *,
    tensors: Mapping[str, int | None] | None = None,
    histograms: bool = True,
    threads: int | None = None,
    executor: str = LOCAL,
    progress: Progress = SILENT,
) -> Observations:
    """Observe the statistics of `tensors` over all of `data`; by default, of every tensor that a plan may quantize.

    `tensors` maps a name to its channel axis or None. Without `histograms`, only ranges and moments are taken, which is
    faster. The result does not depend on the `executor`, nor on how many workers it has.
    """
    wanted = watched_tensors(GraphView(model)) if tensors is None else dict(tensors)
    sources = _sources(model, wanted)
    watch = _Watch(model=model, sources=tuple(dict.fromkeys(sources.values())), bins=qmath.BINS if histograms else 0)
    accumulators, locks = watch.accumulators(), [Lock() for _ in watch.sources]
    _ = watch.session  # before threads need it

    def take_in(batch: Batch) -> tuple[int, int]:
        seen = watch.values(batch)
        for source, accumulator, lock in zip(watch.sources, accumulators, locks, strict=True):
            with lock:
                _update(accumulator, source, batch, seen[source[0]])
        return batch.count, sum(array.nbytes for output in seen.values() for array in arrays_of(output))

    workers = threads or qmath.get_threads()
    with progress.stage("observing", data.count, pieces=-(-data.count // MAX_BATCH)) as advance:
        first, rest = _first(data, take_in, RUN_BYTES // (workers + 1))
        advance(first)
        if executor == LOCAL:
            for count, _ in in_parallel(take_in, rest, workers=workers):
                advance(count)
        else:
            with open_executor(executor, workers=threads) as pool:
                for _, (count, taken) in pool.run(_observed, watch, rest, ahead=AHEAD):
                    for accumulator, other in zip(accumulators, taken, strict=True):
                        accumulator.merge(other)
                    advance(count)
    found = {source: accumulator.result() for source, accumulator in zip(watch.sources, accumulators, strict=True)}
    tensors = {name: found[source] for name, source in sources.items()}
    return Observations(model=model.digest, count=data.count, tensors=tensors)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Watch(SentWithoutCaches):
    """A model and the tensors to watch in it, each with its channel axis; the session is not sent to workers."""

    model: Model
    sources: tuple[tuple[str, int | None], ...]
    bins: int

    def accumulators(self) -> list[qmath.StatisticsAccumulator]:
        return [
            qmath.StatisticsAccumulator(bins=self.bins, channel_axis=axis, parallel=False) for _, axis in self.sources
        ]

    @cached_property
    def session(self) -> Session | None:
        fed = {str(v.name) for v in self.model.input_values()}
        inner = [name for name in dict.fromkeys(name for name, _ in self.sources) if name not in fed]
        return Session(self.model.ir_model, outputs=inner, threads=1) if inner else None

    def values(self, batch: Batch) -> dict[str, Any]:
        return dict(batch.feeds) if self.session is None else {**batch.feeds, **self.session.run(batch.feeds)}


def _observed(watch: _Watch, batch: Batch) -> tuple[int, list[qmath.StatisticsAccumulator]]:
    """The number of samples of one batch, and its statistics."""
    seen, accumulators = watch.values(batch), watch.accumulators()
    for source, accumulator in zip(watch.sources, accumulators, strict=True):
        _update(accumulator, source, batch, seen[source[0]])
    return batch.count, accumulators


def _sources(model: Model, wanted: Mapping[str, int | None]) -> dict[str, tuple[str, int | None]]:
    """For each wanted name, the tensor and the channel axis whose statistics serve for it.

    The result of a Transpose has the same values along another axis, and a tensor whose statistics are taken per
    channel also provides those of the whole.
    """
    values = ir.convenience.create_value_mapping(model.graph)
    sources = {}
    for name, axis in wanted.items():
        value, along = values[name.split(_ALONG)[0] if name.endswith(_suffix(axis)) else name], axis
        while (node := value.producer()) is not None and node.op_type == "Transpose" and "perm" in node.attributes:
            order = node.attributes["perm"].as_ints()
            if order[0] != 0 or (along is not None and not -len(order) <= along < len(order)):
                break
            before = present(node.inputs[0])
            if before.graph is not value.graph:  # it has values where the body of `value` does not run
                break
            value, along = before, None if along is None else order[along]
        sources[name] = str(value.name), along
    axes = {tensor: along for tensor, along in sources.values() if along is not None}
    return {name: (tensor, axes.get(tensor) if along is None else along) for name, (tensor, along) in sources.items()}


def _update(
    accumulator: qmath.StatisticsAccumulator, source: tuple[str, int | None], batch: Batch, output: Any
) -> None:
    """Take in a tensor of one run, in a loop that of every step."""
    name, axis = source
    for array in _joined([batch.real(array) for array in arrays_of(output)], axis):
        if array.dtype.kind != "f" or not array.size:  # such as what a branch that was not taken computes
            continue
        try:
            accumulator.update(array)
        except ValueError as error:
            raise ModelError(f"the float model computes invalid values for '{name}': {error}") from error


def _joined(arrays: list[NDArray[Any]], axis: int | None) -> list[NDArray[Any]]:
    """The arrays end to end where they have one shape: many steps are taken in as fast as one. `axis`: of channels."""
    if len(arrays) < 2 or len({array.shape for array in arrays}) > 1 or not arrays[0].ndim:
        return arrays
    by_channel = axis is not None and axis % arrays[0].ndim == 0
    return arrays if by_channel else [np.concatenate(arrays)]


def _first(data: Dataset, take_in: Callable[[Batch], tuple[int, int]], limit: int) -> tuple[int, Iterator[Batch]]:
    """Take in a single sample first, if the model runs on one; return its count, and batches of the others.

    The batches stay within `limit` bytes, by what the first sample took.
    """
    try:
        count, nbytes = take_in(next(data.batches(1)))
    except ModelError:
        return 0, data.batches(MAX_BATCH)
    return count, data.choose(range(count, data.count)).batches(batch_within(limit, nbytes // count))


def batch_within(limit: int, sample_bytes: int) -> int:
    """The number of samples within `limit` bytes: from 1 to `MAX_BATCH`."""
    return int(np.clip(limit // max(sample_bytes, 1), 1, MAX_BATCH))
