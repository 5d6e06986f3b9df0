"""Small transformers with random weights and planted outliers: an encoder, and a decoder that keeps keys and values."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, INNER, WORDS, LOUD = 32, 4, 64, 120, 5


class Builder:
    """Nodes and constants of one graph."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def constant(self, name: str, array: object) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def random(self, name: str, *shape: int, scale: float = 1.0) -> str:
        return self.constant(name, (scale * self.rng.normal(size=shape)).astype(np.float32))

    def linear(self, x: str, name: str, inputs: int, outputs: int, outlier: float = 1.0) -> str:
        """A product and a bias; trained networks give a loud channel of x small weights."""
        weight = self.random(f"{name}.weight", inputs, outputs, scale=inputs**-0.5)
        self.constants[weight][LOUD] /= outlier
        product = self.op("MatMul", x, weight, name=name)
        return self.op("Add", self.random(f"{name}.bias", outputs, scale=0.1), product)

    def norm(self, x: str, name: str, outlier: float) -> str:
        """A layer normalization; one channel comes out of it `outlier` times as loud as the others."""
        gain = 1 + 0.1 * self.rng.normal(size=WIDTH)
        gain[LOUD] *= outlier
        scale = self.constant(f"{name}.gain", gain.astype(np.float32))
        return self.op("LayerNormalization", x, scale, self.random(f"{name}.bias", WIDTH, scale=0.1), name=name)

    def heads(self, x: str, axes: list[int]) -> str:
        parts = self.constant("parts", np.array([0, 0, HEADS, WIDTH // HEADS]))
        return self.op("Transpose", self.op("Reshape", x, parts), perm=axes)

    def attention(self, x: str, name: str, outlier: float, past: tuple[str, str] | None = None, mask: str = "") -> str:
        q, k, v = (self.linear(x, f"{name}.{part}", WIDTH, WIDTH, outlier) for part in "qkv")
        q, v, k = self.heads(q, [0, 2, 1, 3]), self.heads(v, [0, 2, 1, 3]), self.heads(k, [0, 2, 1, 3])
        if past is not None:
            k = self.op("Concat", past[0], k, axis=2, name=f"{name}.keys")
            v = self.op("Concat", past[1], v, axis=2, name=f"{name}.values")
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Div", scores, self.constant("root", np.float32((WIDTH / HEADS) ** 0.5)))
        weights = self.op("Softmax", self.op("Add", scores, mask) if mask else scores, axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", mixed, self.constant("joined", np.array([0, 0, WIDTH])))
        return self.linear(mixed, f"{name}.out", WIDTH, WIDTH)

    def feed_forward(self, x: str, name: str, outlier: float) -> str:
        h = self.linear(x, f"{name}.up", WIDTH, INNER, outlier)
        erf = self.op("Erf", self.op("Div", h, self.constant("sqrt2", np.float32(2**0.5))))
        one, half = self.constant("one", np.float32(1)), self.constant("half", np.float32(0.5))
        h = self.op("Mul", self.op("Mul", h, self.op("Add", erf, one)), half)
        return self.linear(h, f"{name}.down", INNER, WIDTH)

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "transformer", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def encoder(outlier: float = 12.0, layers: int = 2, seed: int = 1) -> onnx.ModelProto:
    """A sentence encoder: two tables, a mask, normalization before every block."""
    b = Builder(seed)
    words = b.op("Gather", b.random("words.table", WORDS, WIDTH), "ids", name="words")
    kinds = b.op("Gather", b.random("kinds.table", 20, WIDTH, scale=0.3), "kinds", name="kinds_of")
    x = b.norm(b.op("Add", words, kinds), "norm", 1.0)
    far = b.constant("far", np.float32(-1e4))
    missing = b.op("Sub", b.constant("one", np.float32(1)), b.op("Cast", "mask", to=TensorProto.FLOAT))
    mask = b.op("Mul", b.op("Unsqueeze", missing, b.constant("axes", np.array([1, 2]))), far)
    for layer in range(layers):
        loud = b.norm(x, f"{layer}.norm", outlier)
        x = b.op("Add", x, b.attention(loud, f"{layer}.attention", outlier, mask=mask))
        x = b.op("Add", x, b.feed_forward(b.norm(x, f"{layer}.norm2", outlier), f"{layer}.ff", outlier))
    b.norm(x, "last", 1.0)
    b.nodes[-1].output[0] = "hidden"
    fed = [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in ("ids", "kinds", "mask")]
    return b.model(fed, [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", WIDTH])])


def sentences(count: int, length: int = 12, seed: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(4, length + 1, size=(count, 1))
    return {
        "ids": rng.integers(0, WORDS, size=(count, length)),
        "kinds": rng.integers(0, 2, size=(count, length)),
        "mask": mask.astype(np.int64),
    }


def decoder(outlier: float = 12.0, seed: int = 3) -> onnx.ModelProto:
    """One step of a language model: it takes keys and values of earlier steps, and its words' table writes too."""
    b = Builder(seed)
    x = b.op("Gather", b.random("words.table", WORDS, WIDTH), "ids", name="words")
    y = b.norm(x, "norm", outlier)
    x = b.op("Add", x, b.attention(y, "attention", outlier, past=("past_keys", "past_values")))
    x = b.op("Add", x, b.feed_forward(b.norm(x, "norm2", outlier), "ff", outlier))
    rows = b.op("Reshape", b.norm(x, "norm3", 1.0), b.constant("rows", np.array([-1, WIDTH])))
    b.op("Gemm", rows, "words.table", transB=1, name="head")
    b.nodes[-1].output[0] = "logits"
    for node in b.nodes:
        for index, name in enumerate(node.output):
            node.output[index] = {"attention.keys.out": "keys", "attention.values.out": "values"}.get(name, name)
        for index, name in enumerate(node.input):
            node.input[index] = {"attention.keys.out": "keys", "attention.values.out": "values"}.get(name, name)
    kept = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", HEADS, time, WIDTH // HEADS])
        for n, time in (("past_keys", "past"), ("past_values", "past"), ("keys", "all"), ("values", "all"))
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", WORDS])
    return b.model([ids, *kept[:2]], [logits, *kept[2:]])


def steps(count: int, past: int = 6, seed: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (count, HEADS, past, WIDTH // HEADS)
    keys, values = rng.normal(size=(2, *shape)).astype(np.float32)
    return {"ids": rng.integers(0, WORDS, size=(count, 1)), "past_keys": keys, "past_values": values}
