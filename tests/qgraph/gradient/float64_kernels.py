"""onnx's reference evaluator in float64, with the two kernels corrected that it lacks: negative pads, grouped
ConvTranspose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import scipy.special
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


class Pad(OpRun):
    op_domain = ""

    def _run(self, data: Any, pads: Any, value: Any = None, axes: Any = None, mode: str | None = None) -> tuple[Any]:
        ndim = data.ndim
        chosen = list(range(ndim)) if axes is None else [int(a) % ndim for a in axes]
        before, after = [0] * ndim, [0] * ndim
        for i, axis in enumerate(chosen):
            before[axis], after[axis] = int(pads[i]), int(pads[len(chosen) + i])
        kept = tuple(slice(max(-b, 0), n - max(-a, 0)) for b, a, n in zip(before, after, data.shape, strict=True))
        widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
        fill = {"constant_values": 0 if value is None else value} if mode in (None, "constant") else {}
        return (np.pad(data[kept], widths, mode=mode or "constant", **fill),)


class Erf(OpRun):
    op_domain = ""

    def _run(self, x: Any) -> tuple[Any]:
        return (np.asarray(scipy.special.erf(x)),)


class Gelu(OpRun):
    op_domain = ""

    def _run(self, x: Any, approximate: str | None = None) -> tuple[Any]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (x * scipy.special.ndtr(x),)


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any, Any]:
        """Every window by itself; where it reaches beyond the input there is nothing to take."""
        given = {k: v for k, v in attributes.items() if v is not None}
        kernel, spatial = given["kernel_shape"], x.ndim - 2
        strides, dilations = given.get("strides", [1] * spatial), given.get("dilations", [1] * spatial)
        pads = given.get("pads", [0] * 2 * spatial)
        steps = []
        for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
            free = x.shape[2 + i] + pads[i] + pads[spatial + i] - (k - 1) * d - 1
            steps.append((-(-free // s) if given.get("ceil_mode") else free // s) + 1)
        y, indices = np.empty((*x.shape[:2], *steps), x.dtype), np.empty((*x.shape[:2], *steps), np.int64)
        flat = np.arange(x.size, dtype=np.int64).reshape(x.shape)
        for position in np.ndindex(*steps):
            starts = [p * s - b for p, s, b in zip(position, strides, pads, strict=False)]
            taken = np.ix_(
                *(
                    [v for v in range(a, a + k * d, d) if 0 <= v < n]
                    for a, k, d, n in zip(starts, kernel, dilations, x.shape[2:], strict=True)
                )
            )
            seen = x[(..., *taken)].reshape(*x.shape[:2], -1)
            best = seen.argmax(-1, keepdims=True)
            y[(..., *position)] = np.take_along_axis(seen, best, -1)[..., 0]
            where = flat[(..., *taken)].reshape(*x.shape[:2], -1)
            indices[(..., *position)] = np.take_along_axis(where, best, -1)[..., 0]
        return y, indices


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any]:
        """Every input element puts a scaled copy of the kernel into the output."""
        spatial = x.ndim - 2
        given = {k: v for k, v in attributes.items() if v is not None}
        strides, dilations = given.get("strides", [1] * spatial), given.get("dilations", [1] * spatial)
        extra, group = given.get("output_padding", [0] * spatial), given.get("group", 1)
        extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        whole = [s * (n - 1) + e for s, n, e in zip(strides, x.shape[2:], extent, strict=True)]
        pads = self._pads(given, [n * s for n, s in zip(x.shape[2:], strides, strict=True)], whole, extra)
        y = np.zeros((x.shape[0], group, w.shape[1], *(n + m for n, m in zip(whole, extra, strict=True))), x.dtype)
        grouped = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        weights = w.reshape(group, -1, *w.shape[1:])
        for tap in np.ndindex(*w.shape[2:]):
            placed = tuple(
                slice(t * d, t * d + s * (n - 1) + 1, s)
                for t, d, s, n in zip(tap, dilations, strides, x.shape[2:], strict=True)
            )
            y[(..., *placed)] += np.einsum("ngi...,gio->ngo...", grouped, weights[(..., *tap)])
        y = y.reshape(x.shape[0], -1, *y.shape[3:])
        cut = tuple(slice(b_, n - e_) for b_, e_, n in zip(pads[:spatial], pads[spatial:], y.shape[2:], strict=True))
        y = y[(..., *cut)]
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)

    @staticmethod
    def _pads(given: dict[str, Any], same: list[int], whole: list[int], extra: list[int]) -> list[int]:
        auto = given.get("auto_pad", "NOTSET")
        if not auto.startswith("SAME"):
            return list(given.get("pads", [0] * 2 * len(whole)))
        totals = [max(w + e - s, 0) for w, e, s in zip(whole, extra, same, strict=True)]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return small + large if auto == "SAME_UPPER" else large + small


def float64_runner(model: ir.Model) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """A function from inputs to outputs by name, computed in the types of the model."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[Pad, Erf, Gelu, MaxPool, ConvTranspose])
    names = [str(v.name) for v in model.graph.outputs]
    return lambda feeds: dict(zip(names, map(np.asarray, evaluator.run(None, feeds)), strict=True))
