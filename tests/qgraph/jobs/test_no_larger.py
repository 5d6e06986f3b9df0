"""No file is larger than the float one without saying so."""

from __future__ import annotations

import numpy as np
import pytest

import qgraph
from qgraph.errors import QualityWarning

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x'
RNG = np.random.default_rng(0)


def small_layers(count, large):
    """A chain of products with 4 x 4 weights, one of 4 x `large`, and a table of 4096 x 4 numbers that stays float."""
    chain = " ".join(f"h{i} = MatMul(t{i}, w{i}) t{i + 1} = Tanh(h{i})" for i in range(count))
    given = "".join(f", float[4, 4] w{i}" for i in range(count))
    text = (
        f"{HEAD}{given}, float[4, {large}] v, float[4096, 4] table, int64[1] one, int64[1] two) =>"
        f" (float[N, {large}] y, float[N, 4096] z) {{ t0 = Tanh(x) {chain} y = MatMul(t{count}, v)"
        f" u = Unsqueeze(t{count}, one) m = Mul(u, table) z = ReduceSum<keepdims=0>(m, two) }}"
    )
    shapes = {f"w{i}": (4, 4) for i in range(count)} | {"v": (4, large), "table": (4096, 4)}
    constants = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return text, constants | {"one": np.array([1]), "two": np.array([2])}


@pytest.mark.parametrize(("large", "quantized"), [(64, 1), (8, 0)])
def test_a_file_that_would_be_larger_has_fewer_grids(model_from_text, large, quantized):
    text, constants = small_layers(12, large)
    model = model_from_text(text, **constants)
    data = RNG.normal(size=(64, 4)).astype(np.float32)
    if not quantized:
        with pytest.warns(QualityWarning, match=r"the file has [\d,]+ bytes, more than the [\d,]+ of the float model"):
            assert len(qgraph.quantize(model, data, measure=False).plan.layers) == 13
        return
    result = qgraph.quantize(model, data, measure=False)
    assert result.nbytes <= model.ByteSize()
    assert len(result.plan.layers) == quantized
    assert sum("more bytes than its weight saves" in kept.why for kept in result.plan.kept_float) == 12
    assert any("activations stay floating point" in note for note in result.plan.notes)
    with pytest.warns(QualityWarning, match="the file has"):
        fixed = qgraph.quantize(model, data, measure=False, activations=8)
    assert fixed.plan.activations
