"""Claims are read strictly, and judged on paired samples."""

from __future__ import annotations

import numpy as np
import pytest

import qgraph
from qgraph.assess.claims import Claim, prove, read_claim
from qgraph.assess.paired import Paired, run_paired
from qgraph.errors import DataError, UsageError
from qgraph.onnxfile.load import load
from tests.conftest import DEMO


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("drop<=0.5", Claim("drop", 0.5)),
        (" drop <= -1 ", Claim("drop", -1.0)),
        ("accuracy>=90", Claim("accuracy", 90.0)),
        ("same>=98.5", Claim("same", 98.5)),
        ("sqnr>=20", Claim("sqnr", 20.0, 95.0)),
        ("sqnr>=20@90", Claim("sqnr", 20.0, 90.0)),
        ("same>=99.9999999", Claim("same", 99.9999999)),
        ("drop<=0.00000001", Claim("drop", 1e-8)),
    ],
)
def test_claims_are_read_and_written(text, claim):
    assert read_claim(text) == claim
    assert read_claim(str(claim)) == claim


@pytest.mark.parametrize(
    "text", ["", "drop", "drop<0.5", "drop>=1", "same<=9", "drop<=1@90", "f1>=3", "sqnr>=x", "drop<=1;", "drop<=٣"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match="is not a claim: use drop<=POINTS"):
        read_claim(text)


def test_a_bound_is_a_number_of_a_float():
    with pytest.raises(UsageError, match="the number is larger than any float"):
        read_claim(f"sqnr>={'9' * 400}")


@pytest.mark.parametrize("text", ["accuracy>=101", "same>=-1", "drop<=200", "sqnr>=20@150"])
def test_shares_are_percentages(text):
    with pytest.raises(UsageError, match="is not a percentage"):
        read_claim(text)


def found(**changes: object) -> Paired:
    usual = {
        "samples": 1000,
        "distinct": 1000,
        "classes": 10,
        "float_right": 920,
        "right": 915,
        "lost": 8,
        "gained": 3,
        "same": 985,
    }
    decibels = (25.0,) * 970 + (10.0,) * 30
    return Paired(**{**usual, "decibels": decibels, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "holds", "observed"),
    [
        ("drop<=1.5", True, 0.5),
        ("drop<=0.5", False, 0.5),
        ("accuracy>=89", True, 91.5),
        ("accuracy>=91.5", False, 91.5),
        ("same>=97.5", True, 98.5),
        ("same>=98.5", False, 98.5),
        ("sqnr>=20@95", True, 97.0),
        ("sqnr>=20@97", False, 97.0),
        ("sqnr>=30@5", False, 0.0),
    ],
)
def test_a_claim_holds_if_samples_exclude_its_contrary(text, holds, observed):
    proof = prove(read_claim(text), found(), confidence=0.95)
    assert proof.holds == holds
    assert proof.observed == pytest.approx(observed)
    assert proof.holds == (proof.reached >= 0.95)
    better = proof.bound <= read_claim(text).bound if text.startswith("drop") else None
    assert better is None or better == holds


def test_without_labels_only_the_same_class_and_dB_can_be_claimed():
    bare = found(float_right=None, right=None, lost=None, gained=None)
    assert prove(read_claim("same>=97"), bare, confidence=0.95).holds
    for text in ("drop<=1", "accuracy>=50"):
        with pytest.raises(DataError, match="needs one score per class and labels"):
            prove(read_claim(text), bare, confidence=0.95)


def test_pairs_are_counted_as_single_runs_would():
    """Against a straight computation from the outputs of both models."""
    small = qgraph.quantize(DEMO / "digits.onnx", DEMO / "digits_calibration.npz", limit=16, weights=2, measure=False)
    reference, quantized = load(DEMO / "digits.onnx"), load(small.model)
    samples = qgraph.open_data(DEMO / "digits_test.npz", reference, limit=120)
    pair = run_paired(reference, quantized, samples)
    batch = next(samples.batches(120))
    import onnxruntime

    want, have = (
        onnxruntime.InferenceSession(qgraph_bytes(m)).run(None, batch.feeds)[0] for m in (reference, quantized)
    )
    right, still = (outputs.argmax(axis=1) == batch.labels for outputs in (want, have))
    assert (pair.lost, pair.gained) == (int((right & ~still).sum()), int((still & ~right).sum()))
    assert pair.same == int((want.argmax(axis=1) == have.argmax(axis=1)).sum())
    decibels = 10 * np.log10(np.square(want).sum(axis=1) / np.square(have - want).sum(axis=1))
    np.testing.assert_allclose(pair.decibels, decibels, atol=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g (float[2] x) => (int64[2] y) { y = Cast<to=7>(x) }", "no floating-point output"),
        ("g (float[4,3] x) => (float y) { y = ReduceSum<keepdims=0>(x) }", "cannot be divided among"),
    ],
)
def test_outputs_that_are_not_of_samples_are_refused(text, message):
    import onnx_ir as ir

    net = load(ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'))
    width = net.graph.inputs[0].shape
    samples = qgraph.open_data(np.ones((8, *(int(n) for n in width[1:])), np.float32), net)
    with pytest.raises(DataError, match=message):
        run_paired(net, net, samples)


def qgraph_bytes(model: object) -> bytes:
    from qgraph.onnxfile.write import serialised

    return serialised(model.ir_model)  # type: ignore[attr-defined]
