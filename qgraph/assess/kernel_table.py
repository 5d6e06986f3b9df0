"""A table of kernel times of this machine: each is measured once, alone, and kept in the user's cache folder.

A `Kernel` is one operator with its shapes. It is run as a model of its own in onnxruntime, in the very pattern that
becomes an integer kernel, on one thread; of the profile only the kernel counts, not what onnxruntime puts around it to
change layouts. The file is named after processor and version of onnxruntime, so that no machine reads another's times.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qgraph.errors import ModelError
from qgraph.graph.layers import INTEGER_OPS
from qgraph.lowering.unfold import Window, channels_first, matrix, rows
from qgraph.running.cpu import cpu_flags
from qgraph.running.files import write_atomically
from qgraph.running.here import cpu_name
from qgraph.running.profile import kernel_times, seconds_alone
from qgraph.running.sessions import version

Runs = Literal["floats", "integers", "dynamic"]
BINARY = frozenset({"Add", "Mul"})
_OPSET, _IR = 17, 8
_OWN = "com.microsoft"  # onnxruntime's own operators
_WRITE_CODES = frozenset({"QuantizeLinear", "NhwcMaxPool"})
_RUNS = 4  # at least; of short kernels as many as fit into some milliseconds
_TURNS, _SETTLING = 6, 5.0  # after the first measurement: turns at most, and seconds after which none begins
_MEANING = "least of many, without the profile"  # of the times in a file; another one has another name
_MOVES = re.compile(r"Reorder|Transpose|^Mem|^(De)?[qQ]uantizeLinear$")  # around a kernel that is measured alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An operator with the shapes of its operand and of its weight, or second operand, as it runs.

    Swish is x Sigmoid(x), which onnxruntime merges in floats; an operator without weight whose second operand has no
    shape reads the first one twice, if it needs two.

    `attributes` are those of the node, as pairs. With `codes`, an integer kernel writes codes, otherwise floats.
    """

    op: str
    operand: tuple[int, ...]
    weight: tuple[int, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    runs: Runs = "floats"
    codes: bool = True

    def __str__(self) -> str:
        words = [self.op, self.runs, "x".join(map(str, self.operand)), "x".join(map(str, self.weight))]
        words += [f"{name}={value}" for name, value in sorted(self.attributes)] + ([] if self.codes else ["to floats"])
        return " ".join(words)


class KernelTable:
    """Seconds of kernels on one thread of this machine, measured when they are first asked for.

    `folder` is where the table is kept: by default $QGRAPH_CACHE, else `qgraph` in the user's cache folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = Path(folder or os.environ.get("QGRAPH_CACHE") or Path(home) / "qgraph") / f"{_machine()}.json"
        self.seconds: dict[str, float] = self._read()
        self.new: dict[str, tuple[Kernel, float]] = {}

    def __getitem__(self, kernel: Kernel) -> float:
        name = str(kernel)
        if name not in self.seconds:
            self.seconds[name], share = _measured(kernel)
            self.new[name] = kernel, share
        return self.seconds[name]

    def settle(self, other: Callable[[], None]) -> bool:
        """Measure again what is new, in turns with `other`, and keep the least; whether anything is new.

        Processors change their pace from second to second, most of all where two threads share a core: a kernel that
        met a slow one gets other chances.
        """
        begun = time.thread_time()
        for _ in range(_TURNS if self.new else 0):
            if time.thread_time() - begun >= _SETTLING:
                break
            for name, (kernel, share) in self.new.items():
                if share:
                    self.seconds[name] = min(self.seconds[name], share * _alone(kernel) or np.inf)
            other()
        return bool(self.new)

    def save(self) -> None:
        """Write what was measured; a folder that cannot be written only costs measuring again."""
        if not self.new:
            return
        content = {"processor": cpu_name(), "onnxruntime": version, "seconds": self._read() | self.seconds}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        except OSError:
            return
        self.new = {}

    def _read(self) -> dict[str, float]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))["seconds"]
            return {str(name): float(seconds) for name, seconds in found.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return {}


def _machine() -> str:
    """What kernel times depend on, as the name of a file."""
    told = (_MEANING, cpu_name(), platform.machine(), *sorted(cpu_flags()), version)
    return f"kernels-{sha256(' '.join(told).encode()).hexdigest()[:16]}"


def _measured(kernel: Kernel) -> tuple[float, float]:
    """The seconds of the kernel alone, and their share of its model; infinite where onnxruntime does not run it."""
    model, feeds = _model(kernel)
    try:
        found = kernel_times(model.SerializeToString(), feeds, runs=_RUNS)
    except ModelError:
        return float("inf"), 0.0
    unfolded = kernel.op == "Conv" and kernel.runs == "dynamic"
    own = unfolded or kernel.op in ("QuantizeLinear", "DequantizeLinear")
    seconds = sum(node.seconds for node in found if own or not _MOVES.search(node.op))
    return seconds, seconds / max(sum(node.seconds for node in found), 1e-12)


def _alone(kernel: Kernel) -> float:
    model, feeds = _model(kernel)
    return seconds_alone(model.SerializeToString(), feeds, runs=_RUNS)


def _model(kernel: Kernel) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """The kernel as a model that onnxruntime fuses, and something to feed it."""
    rng = np.random.default_rng(0)
    floats = rng.normal(0, 1, kernel.operand).astype(np.float32)
    codes = rng.integers(0, 256, kernel.operand).astype(np.uint8)
    made = _Nodes()
    if kernel.op in ("QuantizeLinear", "DequantizeLinear"):
        fed: NDArray[Any] = floats if kernel.op == "QuantizeLinear" else codes
        result = made.op(kernel.op, "x", *made.grid(np.uint8))
    elif kernel.op == "MaxPool" and kernel.runs == "integers" and len(kernel.operand) == 4:
        fed = np.ascontiguousarray(np.moveaxis(codes, 1, -1))  # as between convolutions: the plain kernel is slow
        result = made.op("NhwcMaxPool", "x", domain=_OWN, **dict(kernel.attributes))
    else:
        whole = kernel.runs == "integers"
        fed = codes if whole else floats
        operand = made.op("DequantizeLinear", "x", *made.grid(np.uint8)) if whole else "x"
        result = _product(kernel, operand, made)
        if whole and kernel.codes:
            result = made.op("QuantizeLinear", result, *made.grid(np.uint8))
    kind = helper.np_dtype_to_tensor_dtype(fed.dtype)
    inputs = [helper.make_tensor_value_info("x", kind, fed.shape)]
    out = TensorProto.UINT8 if made.nodes[-1].op_type in _WRITE_CODES else TensorProto.FLOAT
    graph = helper.make_graph(
        made.nodes, "kernel", inputs, [helper.make_tensor_value_info(result, out, None)], made.constants
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_OWN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
    return model, {"x": fed}


def _product(kernel: Kernel, operand: str, made: _Nodes) -> str:
    """The operator with its weight, in floats or behind DequantizeLinear, or the pattern of a dynamic product."""
    attributes = dict(kernel.attributes)
    if kernel.op == "Swish":
        return made.op("Mul", operand, made.op("Sigmoid", operand))
    if kernel.op in BINARY:
        return made.op(kernel.op, operand, _other(kernel, operand, made))
    if kernel.op not in INTEGER_OPS:
        return made.op(kernel.op, operand, **attributes)
    rng = np.random.default_rng(1)
    if kernel.runs == "floats":
        return made.op(
            kernel.op, operand, made.shared(rng.normal(0, 1, kernel.weight).astype(np.float32)), **attributes
        )
    integers = rng.integers(-63, 64, kernel.weight).astype(np.int8)
    if kernel.runs == "dynamic":
        return _dynamic(kernel, operand, integers, made)
    codes = made.shared(integers)
    axis = 0 if kernel.op == "Conv" or attributes.get("transB") else len(kernel.weight) - 1
    steps = np.full(kernel.weight[axis], 0.01, np.float32)
    zeros = np.zeros(kernel.weight[axis], np.int8)
    weight = made.op("DequantizeLinear", codes, made.shared(steps), made.shared(zeros), axis=axis)
    return made.op(kernel.op, operand, weight, **attributes)


def _dynamic(kernel: Kernel, operand: str, integers: NDArray[np.int8], made: _Nodes) -> str:
    """The pattern of a dynamic product, or of a convolution as one."""
    attributes = dict(kernel.attributes)
    q, scale, zero = made.several("DynamicQuantizeLinear", operand, count=3)
    codes = made.shared(integers.T if attributes.get("transB") else integers)
    window = Window.of(kernel.weight, attributes) if kernel.op == "Conv" else None
    if window is not None:
        q, codes = rows(made, q, zero, window), matrix(made, codes, window, kernel.weight[0])
    whole = made.op("Cast", made.op("MatMulInteger", q, codes, zero), to=TensorProto.FLOAT)
    result = made.op("Mul", whole, made.op("Mul", scale, made.shared(np.float32(0.01))))
    return result if window is None else channels_first(made, result, window)


def _other(kernel: Kernel, operand: str, made: _Nodes) -> str:
    """The second operand of an Add or Mul."""
    if not kernel.weight:
        return operand
    if kernel.runs == "floats":
        return made.shared(np.full(kernel.weight, 0.5, np.float32))
    return made.op("DequantizeLinear", made.shared(np.full(kernel.weight, 7, np.uint8)), *made.grid(np.uint8))


class _Nodes:
    """Nodes and constants of a small model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def shared(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def grid(self, kind: Any) -> tuple[str, str]:
        return self.shared(np.float32(0.03)), self.shared(kind(128))

    def op(self, op: str, /, *inputs: str, **attributes: Any) -> str:
        return self.several(op, *inputs, count=1, **attributes)[0]

    def several(self, op: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names
