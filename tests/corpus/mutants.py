"""Damaged and hostile model files, from a seed: what a fuzzer, a broken disk or an attacker would hand over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from random_nets import random_net

GIANT = (2**31 - 1, 2**31, 2**40, 2**62, -1, -(2**63), 0)
Bytes = Callable[[bytearray, np.random.Generator], bytes]
Structure = Callable[[onnx.ModelProto, np.random.Generator], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A damaged model file, what was done to it, and feeds of its original."""

    path: Path
    kind: str
    feeds: dict[str, np.ndarray]


def write_mutant(seed: int, folder: Path) -> Mutant:
    """Write the mutant of this seed as `folder`/model.onnx, and what it points at."""
    rng = np.random.default_rng(seed)
    model, feeds = random_net(int(rng.integers(200)))
    path = folder / "model.onnx"
    (folder.parent / "secret.bin").write_bytes(b"?" * 4096)
    (folder / "link.bin").symlink_to("../secret.bin")
    if rng.random() < 0.1:
        (folder / "weights.bin").write_bytes(rng.bytes(64))
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(2**42)  # no byte of it is on disk
    if rng.random() < 0.6:
        change = STRUCTURES[int(rng.integers(len(STRUCTURES)))]
        change(model, rng)
        path.write_bytes(model.SerializeToString())
        return Mutant(path=path, kind=change.__name__, feeds=feeds)
    damage, data = DAMAGES[int(rng.integers(len(DAMAGES)))], model.SerializeToString()
    for _ in range(int(rng.integers(1, 4))):
        data = damage(bytearray(data), rng)
    path.write_bytes(data)
    return Mutant(path=path, kind=damage.__name__, feeds=feeds)


# Damage to the bytes


def flip_bits(data: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(len(data), size=int(rng.integers(1, 9))) if data else ():
        data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def truncate(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: int(rng.integers(len(data) + 1))])


def swap_chunks(data: bytearray, rng: np.random.Generator) -> bytes:
    size = min(int(rng.integers(1, 16)), len(data) // 2)
    a, b = (int(rng.integers(len(data) - size + 1)) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(data)


def drop_or_repeat(data: bytearray, rng: np.random.Generator) -> bytes:
    start, size = int(rng.integers(len(data) + 1)), int(rng.integers(1, 64))
    middle = bytes(data[start : start + size]) * int(rng.choice([0, 2, 50]))
    return bytes(data[:start]) + middle + bytes(data[start + size :])


def grow_a_length(data: bytearray, rng: np.random.Generator) -> bytes:
    """A varint that says much more than there is."""
    if data:
        place = int(rng.integers(len(data)))
        data[place : place + 1] = b"\xff" * int(rng.integers(1, 9)) + bytes([int(rng.integers(128))])
    return bytes(data)


DAMAGES: tuple[Bytes, ...] = (flip_bits, truncate, swap_chunks, drop_or_repeat, grow_a_length)


# Damage to the meaning


def giant_weight(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    tensor = _tensor(model, rng)
    tensor.dims[:] = [int(rng.choice(GIANT)) for _ in range(int(rng.integers(1, 5)))]


def giant_input(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[int(rng.integers(len(shape.dim)))].dim_value = int(rng.choice(GIANT))


def giant_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.ints and rng.random() < 0.5:
                attribute.ints[int(rng.integers(len(attribute.ints)))] = int(rng.choice(GIANT))
            elif attribute.type == onnx.AttributeProto.INT and rng.random() < 0.5:
                attribute.i = int(rng.choice(GIANT))


def giant_constant(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A graph that computes giga- or terabytes out of a few bytes."""
    shape = np.array([2**20, 2 ** int(rng.integers(6, 22))], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(shape, "huge/shape"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1), np.float32), "huge/one"))
    how = [
        helper.make_node("ConstantOfShape", ["huge/shape"], ["huge"]),
        helper.make_node("Expand", ["huge/one", "huge/shape"], ["huge"]),
        helper.make_node("Tile", ["huge/one", "huge/shape"], ["huge"]),
    ]
    model.graph.node.insert(0, how[int(rng.integers(len(how)))])
    model.graph.node.append(helper.make_node("Neg" if rng.random() < 0.5 else "Identity", ["huge"], ["huge/out"]))
    model.graph.output.append(helper.make_tensor_value_info("huge/out", TensorProto.FLOAT, ["a", "b"]))


def giant_padding(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    value = model.graph.input[0]
    rank, name = len(value.type.tensor_type.shape.dim), value.name
    pads = np.zeros(2 * rank, np.int64)
    pads[int(rng.integers(2 * rank))] = 2 ** int(rng.integers(24, 40))
    for node in model.graph.node:
        node.input[:] = ["padded" if i == name else i for i in node.input]
    model.graph.initializer.append(numpy_helper.from_array(pads, "padding"))
    model.graph.node.insert(0, helper.make_node("Pad", [name, "padding"], ["padded"]))


def endless_loop(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A loop whose condition stays true, with a trip count of billions or none."""
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    number = helper.make_tensor_value_info("round", TensorProto.INT64, [])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("before", "after")]
    went_on = helper.make_tensor_value_info("goes on", TensorProto.BOOL, [])
    nodes = [helper.make_node("Neg", ["before"], ["after"]), helper.make_node("Identity", ["go"], ["goes on"])]
    body = helper.make_graph(nodes, "body", [number, flag, values[0]], [went_on, values[1]])
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "trips"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "first"))
    trips, condition = [("", "yes"), ("trips", "yes"), ("trips", "")][int(rng.integers(3))]
    model.graph.node.append(helper.make_node("Loop", [trips, condition, "first"], ["last"], body=body))
    model.graph.output.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, [1]))


def cycle(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    first, last = model.graph.node[0], model.graph.node[-1]
    if first.input and last.output:
        first.input[0] = last.output[0]


def same_name_twice(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = model.graph.node
    nodes[-1].output[0] = nodes[0].output[0]


def missing_tensor(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = model.graph.node[int(rng.integers(len(model.graph.node)))]
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = str(rng.choice(["", "nowhere"]))


def wrong_operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    names = ["Conv", "MatMul", "Gemm", "Reshape", "Scan", "LSTM", "Resize", "Nothing", "BatchNormalization", "If", ""]
    model.graph.node[int(rng.integers(len(model.graph.node)))].op_type = str(rng.choice(names))


def wrong_type(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    _tensor(model, rng).data_type = int(rng.integers(0, 40))


def short_weight(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    tensor = _tensor(model, rng)
    tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]


def strange_values(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """NaN, infinities and numbers whose products overflow."""
    tensor = _tensor(model, rng)
    if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, np.float32).copy()
        values[rng.random(values.shape) < 0.5] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 1e-45])
        tensor.raw_data = values.tobytes()


def outside(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Weights that are said to lie in a file elsewhere, or where no file could hold them."""
    tensor = _tensor(model, rng)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    places = ["../secret.bin", "/etc/passwd", "weights.bin", "a/../../secret.bin", "link.bin", "", "model.onnx", "."]
    tensor.external_data.add(key="location", value=str(rng.choice(places)))
    if rng.random() < 0.5:
        tensor.external_data.add(key="offset", value=str(rng.choice([2**40, -1, 2**63, 8])))
    if rng.random() < 0.5:
        tensor.external_data.add(key="length", value=str(rng.choice([2**40, -1, 0, 4])))


def sparse(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Weights in a file of terabytes that holds nothing: at a place far inside it, or as large as it."""
    tensor = _tensor(model, rng)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    if rng.random() < 0.5:
        tensor.dims[:] = [2**20, 2 ** int(rng.integers(17, 20))]
    tensor.external_data.add(key="location", value="sparse.bin")
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * math.prod(tensor.dims)
    tensor.external_data.add(key="length", value=str(size))
    tensor.external_data.add(key="offset", value=str(int(rng.choice([0, 2**41, 2**42 - size]))))


def _tensor(model: onnx.ModelProto, rng: np.random.Generator) -> TensorProto:
    return model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


STRUCTURES: tuple[Structure, ...] = (
    giant_weight,
    giant_input,
    giant_attribute,
    giant_constant,
    giant_padding,
    endless_loop,
    cycle,
    same_name_twice,
    missing_tensor,
    wrong_operator,
    wrong_type,
    short_weight,
    strange_values,
    outside,
    sparse,
)
