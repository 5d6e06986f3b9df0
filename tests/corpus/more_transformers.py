"""Small transformers for pictures and sound, with planted outliers, from the parts of `transformers`."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.corpus.transformers import LOUD, WIDTH, Builder

SIDE, PATCH, CLASSES, BANDS, TAPS = 16, 4, 10, 20, 7


def vision(outlier: float = 12.0, layers: int = 2, seed: int = 5) -> onnx.ModelProto:
    """A vision transformer: patches by a convolution, a class token, places, and a head that reads the token alone."""
    b = Builder(seed)
    kernel = b.random("patches.weight", WIDTH, 3, PATCH, PATCH, scale=(3 * PATCH * PATCH) ** -0.5)
    patches = b.op("Conv", "image", kernel, name="patches", strides=[PATCH, PATCH])
    rows = b.op("Reshape", patches, b.constant("flat", np.array([0, WIDTH, -1])))
    tokens = b.op("Transpose", rows, perm=[0, 2, 1])
    first = b.op("Slice", tokens, *(b.constant(n, np.array([v])) for n, v in (("from", 0), ("to", 1), ("along", 1))))
    nothing = b.op("Mul", first, b.constant("zero", np.float32(0)))
    token = b.op("Add", nothing, b.random("class", 1, 1, WIDTH))
    places = b.random("places", 1, (SIDE // PATCH) ** 2 + 1, WIDTH, scale=0.3)
    x = b.op("Add", b.op("Concat", token, tokens, axis=1), places)
    for layer in range(layers):
        x = b.op("Add", x, b.attention(b.norm(x, f"{layer}.norm", outlier), f"{layer}.attention", outlier))
        x = b.op("Add", x, b.feed_forward(b.norm(x, f"{layer}.norm2", outlier), f"{layer}.ff", outlier))
    seen = b.op("Gather", b.norm(x, "last", 1.0), b.constant("token", np.int64(0)), axis=1)
    b.op("Gemm", seen, b.random("head.weight", CLASSES, WIDTH, scale=WIDTH**-0.5), transB=1, name="head")
    b.nodes[-1].output[0] = "logits"
    fed = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    return b.model([fed], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])])


def pictures(count: int, seed: int = 6) -> dict[str, np.ndarray]:
    """Smooth pictures: noise that was averaged over neighbours."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, SIDE + 3, SIDE + 3))
    smooth = sum(noise[:, :, i : i + SIDE, j : j + SIDE] for i in range(4) for j in range(4)) / 4
    return {"image": smooth.astype(np.float32)}


def conformer(outlier: float = 12.0, layers: int = 1, seed: int = 7) -> onnx.ModelProto:
    """A Conformer: two half feed-forwards around attention and a gated depthwise convolution, along open time."""
    b = Builder(seed)
    x = b.linear("sound", "front", BANDS, WIDTH)
    half = b.constant("half", np.float32(0.5))
    for layer in range(layers):
        for part in ("before", "after"):
            y = _swish_forward(b, b.norm(x, f"{layer}.{part}.norm", outlier), f"{layer}.{part}", outlier)
            x = b.op("Add", x, b.op("Mul", y, half))
            if part == "before":
                loud = b.norm(x, f"{layer}.norm", outlier)
                x = b.op("Add", x, b.attention(loud, f"{layer}.attention", outlier))
                x = b.op("Add", x, _convolution(b, b.norm(x, f"{layer}.norm2", 1.0), f"{layer}.conv"))
        x = b.norm(x, f"{layer}.last", 1.0)
    b.linear(x, "head", WIDTH, CLASSES)
    b.nodes[-1].output[0] = "scores"
    fed = helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["batch", "time", BANDS])
    return b.model([fed], [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "time", CLASSES])])


def sounds(count: int, time: int = 24, seed: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    loudness = np.exp(0.2 * rng.normal(size=(count, 1, 1)))
    return {"sound": (loudness * rng.normal(size=(count, time, BANDS))).astype(np.float32)}


def _swish(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x))


def _swish_forward(b: Builder, x: str, name: str, outlier: float) -> str:
    return b.linear(_swish(b, b.linear(x, f"{name}.up", WIDTH, 2 * WIDTH, outlier)), f"{name}.down", 2 * WIDTH, WIDTH)


def _convolution(b: Builder, x: str, name: str) -> str:
    """Pointwise, gated, depthwise, normalised and pointwise again."""
    x = b.op("Transpose", x, perm=[0, 2, 1])
    gated = b.op("Conv", x, b.random(f"{name}.in", 2 * WIDTH, WIDTH, 1, scale=WIDTH**-0.5), name=f"{name}.first")
    b.nodes.append(helper.make_node("Split", [gated], [f"{name}.a", f"{name}.b"], axis=1, name=f"{name}.split"))
    x = b.op("Mul", f"{name}.a", b.op("Sigmoid", f"{name}.b"))
    taps = b.random(f"{name}.taps", WIDTH, 1, TAPS, scale=TAPS**-0.5)
    side = TAPS // 2
    x = b.op("Conv", x, taps, name=f"{name}.depthwise", group=WIDTH, pads=[side, side])
    gain = np.ones(WIDTH, np.float32)
    gain[LOUD] = 3
    numbers = {"gain": gain, "bias": np.zeros(WIDTH, np.float32), "mean": np.zeros(WIDTH, np.float32), "var": gain**0}
    x = b.op("BatchNormalization", x, *(b.constant(f"{name}.{n}", v) for n, v in numbers.items()), name=f"{name}.norm")
    x = b.op("Conv", _swish(b, x), b.random(f"{name}.out", WIDTH, WIDTH, 1, scale=WIDTH**-0.5), name=f"{name}.last")
    return b.op("Transpose", x, perm=[0, 2, 1])
