"""Networks in other precisions, networks that are quantized already, and the small models of the `onnx` package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from judge import Unsound, Verdict, judge
from random_nets import random_net
from variants import PRECISIONS, in_precision, quantized_already

DATA = Path(onnx.backend.test.__file__).parent / "data"
Case = tuple[str, onnx.ModelProto, dict[str, Any]]


def verdicts(cases: list[Case], **options: Any) -> list[Verdict]:
    """One verdict per case; fails with those that are unsound."""
    found, unsound = [], []
    for name, model, feeds in cases:
        try:
            found.append(judge(model, feeds, **options))
        except Unsound as error:
            unsound.append(f"{name}: {error}")
        except Exception as error:
            unsound.append(f"{name}: {type(error).__name__}: {error}")
    assert not unsound, "\n".join(unsound)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_other_precisions(precision):
    """Quantized as far as layers are float32, or refused; and the answer has the type that it had."""
    cases = []
    for seed in range(2000, 2040):
        changed = in_precision(*random_net(seed), PRECISIONS[precision])
        if changed is not None:
            cases.append((f"seed {seed}", *changed))
    assert len(cases) > 20
    verdicts(cases)


@pytest.mark.parametrize("options", [{}, {"weights": 4, "activations": None}], ids=["w8a8", "w4"])
def test_quantized_already(options):
    cases = []
    for seed in range(3000, 3020):
        model, feeds = random_net(seed)
        made = quantized_already(model, feeds, **options)
        if made is not None:
            cases.append((f"seed {seed}", made, feeds))
    assert len(cases) > 15
    verdicts(cases)


def test_small_models_of_the_standard():
    """They have nothing to quantize: each is refused, and says so."""
    cases = list(_stored("simple"))
    assert len(cases) >= 20
    assert not any(verdict.quantized for verdict in verdicts(cases))


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_light_models_of_the_standard(name):
    """Real architectures whose weights the graph itself makes (ConstantOfShape), all equal."""
    model = onnx.load(DATA / "light" / f"light_{name}.onnx")
    constants = {t.name for t in model.graph.initializer}
    (x,) = (v for v in model.graph.input if v.name not in constants)
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim]
    feeds = {x.name: np.random.default_rng(0).random(shape, np.float32)}
    assert verdicts([(name, model, feeds)])[0].quantized


def _stored(kind: str) -> Iterator[Case]:
    for folder in sorted((DATA / kind).iterdir()):
        model = onnx.load(folder / "model.onnx")
        feeds = {}
        for index, value in enumerate(model.graph.input):
            path = folder / "test_data_set_0" / f"input_{index}.pb"
            if path.exists():  # the last inputs may have defaults
                feeds[value.name] = _stored_input(path, value)
        yield folder.name, model, feeds


def _stored_input(path: Path, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
    return np.asarray(onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())))
