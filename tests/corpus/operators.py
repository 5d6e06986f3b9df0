"""Every operator of ONNX between two quantizable layers, from the cases of the standard's own backend tests."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qgraph.onnxfile.load import MIN_OPSET
from qgraph.running.sessions import latest_opset

WIDEST = 256  # a layer on more channels than this would only cost time
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


_NUMPY = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]


@cache
def standard() -> tuple[Case, ...]:
    """The operator cases as the `onnx` package makes them: a node, its inputs, its expected outputs."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = []
    for case in cases:
        inputs = case.data_sets[0][0]
        feeds = {v.name: _plain(x) for v, x in zip(case.model.graph.input, inputs, strict=True)}
        found.append(Case(name=case.name, model=case.model, feeds=feeds))
    return tuple(found)


def _plain(x: Any) -> Any:
    if isinstance(x, onnx.TensorProto):
        return numpy_helper.to_array(x)
    return np.asarray(x) if isinstance(x, np.generic) else x


def between_layers(indices: Iterable[int], *, constants: bool) -> Iterator[Case]:
    """x -> layer -> operator -> layer, for those of the standard's cases that take and give floats.

    With `constants`, every input but the first is an initializer: a parameter rather than a second tensor.
    """
    for index in indices:
        built = _sandwich(standard()[index], constants=constants, seed=index)
        if built is not None:
            yield built


@cache
def one_of_each() -> list[Case]:
    """One case of every operator between layers, with tensors or with parameters by turns."""
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(standard()):
        if len(case.model.graph.node) == 1:
            groups.setdefault(case.model.graph.node[0].op_type, []).append(index)
    found = []
    for count, (_, indices) in enumerate(sorted(groups.items())):
        found += itertools.islice(between_layers(indices, constants=count % 2 == 1), 1)
    return found


def _sandwich(case: Case, *, constants: bool, seed: int) -> Case | None:
    generator = np.random.default_rng(seed)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(max(opset.version, MIN_OPSET), latest_opset())
    graph = model.graph
    feeds = {name: _finite(array) for name, array in case.feeds.items()}
    if constants:
        _make_constants(graph, feeds, first=0)
    ahead, renamed = _layers_ahead(graph, generator)
    if not ahead and not any(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in graph.output):
        return None
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
    graph.node.MergeFrom(behind := _layers_behind(graph, generator))
    nodes = [*ahead, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    if not (ahead or behind):
        return None
    return Case(name=case.name, model=model, feeds=feeds)


def _finite(array: Any) -> Any:
    """Calibration data with NaN or infinite values are refused, which is tested elsewhere."""
    return np.asarray(np.nan_to_num(array, posinf=3.0, neginf=-3.0)) if getattr(array, "dtype", 0) in _NUMPY else array


def _make_constants(graph: onnx.GraphProto, feeds: dict[str, Any], *, first: int) -> None:
    for value in list(graph.input)[first + 1 :]:
        array = feeds.get(value.name)
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and value.type.HasField("tensor_type"):
            tensor = numpy_helper.from_array(array, value.name)
            if tensor.data_type == value.type.tensor_type.elem_type:
                graph.initializer.append(tensor)
                graph.input.remove(value)
                del feeds[value.name]


def _layers_ahead(
    graph: onnx.GraphProto, generator: np.random.Generator
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """A layer near the identity on every float input, so that values stay what the operator expects."""
    nodes, renamed = [], {}
    for value in graph.input:
        tensor = value.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type not in FLOATS or not dims or not all(dims):
            continue
        name, stem = value.name, f"ahead/{value.name}"
        if tensor.elem_type != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [name], [f"{stem}/f32"], to=TensorProto.FLOAT))
            name = f"{stem}/f32"
        convolution = len(dims) >= 3 and generator.random() < 0.5
        count = dims[1] if convolution else dims[-1]
        if count > WIDEST:
            continue
        weight = np.eye(count) + 0.05 * generator.standard_normal((count, count))
        weight = weight.reshape(count, count, *[1] * (len(dims) - 2)) if convolution else weight
        graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), f"{stem}/w"))
        nodes.append(helper.make_node("Conv" if convolution else "MatMul", [name, f"{stem}/w"], [stem]))
        renamed[value.name] = stem
        if tensor.elem_type != TensorProto.FLOAT:
            nodes.append(helper.make_node("Cast", [stem], [f"{stem}/back"], to=tensor.elem_type))
            renamed[value.name] = f"{stem}/back"
    return nodes, renamed


def _layers_behind(graph: onnx.GraphProto, generator: np.random.Generator) -> list[onnx.NodeProto]:
    """A MatMul on every float output; the operator's own outputs stay outputs too in half of the cases."""
    nodes = []
    for value in list(graph.output):
        tensor = value.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if tensor.elem_type != TensorProto.FLOAT or not dims or not all(dims) or dims[-1] > WIDEST:
            continue
        stem = f"behind/{value.name}"
        weight = generator.standard_normal((dims[-1], 3)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"{stem}/w"))
        nodes.append(helper.make_node("MatMul", [value.name, f"{stem}/w"], [stem]))
        if generator.random() < 0.5:
            graph.output.remove(value)
        graph.output.append(helper.make_tensor_value_info(stem, TensorProto.FLOAT, [*dims[:-1], 3]))
    return nodes
