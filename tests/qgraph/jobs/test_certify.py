"""Certificates: made, written, read, checked again, and refused where something else is given."""

from __future__ import annotations

import json

import numpy as np
import pytest

import qgraph
from qgraph.cli import main
from qgraph.errors import DataError, PlanError, UsageError
from tests.conftest import DEMO

FLOAT, TEST = DEMO / "digits.onnx", DEMO / "digits_test.npz"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certify")
    result = qgraph.quantize(FLOAT, DEMO / "digits_calibration.npz", limit=32, measure=False)
    result.save(folder / "small.onnx")
    (folder / "plan.json").write_text(result.plan.to_json())
    return folder


@pytest.fixture(scope="module")
def certificate(made):
    return qgraph.certify(made / "small.onnx", FLOAT, TEST, ["drop<=1", "same>=98", "sqnr>=25"])


def test_it_says_what_holds(certificate):
    assert certificate.holds
    assert certificate.counts["samples"] == 600
    assert certificate.proven.sums_fit_32_bits
    assert certificate.proven.pairs_fit_16_bits
    assert certificate.measured.size < 0.35
    assert len({certificate.model.digest, certificate.against.digest, certificate.data.digest}) == 3


def test_it_is_read_back_as_it_was(certificate):
    again = qgraph.Certificate.from_json(certificate.to_json())
    assert again == certificate
    assert json.loads(certificate.to_json())["holds"] is True


def test_a_second_check_confirms_it(certificate, made):
    again, differences = qgraph.check_certificate(certificate, made / "small.onnx", FLOAT, TEST)
    assert differences == ()
    assert again.counts == certificate.counts


def test_other_data_or_another_model_are_noticed(certificate, made, tmp_path):
    other = qgraph.quantize(FLOAT, activations=None, measure=False)
    other.save(tmp_path / "other.onnx")
    _, differences = qgraph.check_certificate(certificate, tmp_path / "other.onnx", FLOAT, TEST, limit=500)
    said = " ".join(differences)
    assert "model: the certificate is about small.onnx" in said
    assert "data: the certificate is about" in said


def test_a_plan_must_be_for_the_float_model(made):
    plan = qgraph.QuantPlan.load(made / "plan.json")
    named = qgraph.certify(made / "small.onnx", FLOAT, TEST, ["same>=90"], plan=plan, limit=100)
    assert named.plan is not None
    with pytest.raises(PlanError, match="made for another model"):
        qgraph.certify(made / "small.onnx", made / "small.onnx", TEST, ["same>=90"], plan=plan, limit=100)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_certainty_is_refused(made, confidence):
    with pytest.raises(UsageError, match="confidence must lie between 50 % and"):
        qgraph.certify(made / "small.onnx", FLOAT, TEST, ["same>=90"], confidence=confidence)


def test_a_claim_is_needed(made):
    with pytest.raises(UsageError, match="a certificate needs a claim"):
        qgraph.certify(made / "small.onnx", FLOAT, TEST, [])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"holds": true, "schema": 9}', "[" * 100_000])
def test_what_is_no_certificate_is_refused(text):
    with pytest.raises(DataError, match=r"is not a certificate|has schema 9"):
        qgraph.Certificate.from_json(text)


def test_the_command_line_gates(made, capsys, tmp_path):
    words = ["certify", str(made / "small.onnx"), "--against", str(FLOAT), "--data", str(TEST)]
    written, page = tmp_path / "certificate.json", tmp_path / "certificate.html"
    assert main([*words, "--claim", "drop<=1", "-o", str(written), "--page", str(page)]) == 0
    assert "cannot overflow" in capsys.readouterr().out
    assert "Every claim holds at 95 % confidence" in page.read_text()
    assert main([*words, "--check", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"] == []
    assert main([*words, "--check", str(written), "--limit", "300"]) == 1
    assert "is not confirmed: data:" in capsys.readouterr().err
    assert main([*words, "--claim", "drop<=0.001"]) == 1
    assert "is not proven at 95 %" in capsys.readouterr().err
    assert main([*words, "--claim", "magic"]) == 2
    capsys.readouterr()
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "or --check CERTIFICATE.json" in said


def test_certificates_are_wrong_for_few_samples(made):
    """What fifty subsamples prove about the loss, against all of the samples that they were drawn from."""
    from qgraph.assess.claims import prove, read_claim
    from qgraph.assess.paired import Paired

    rng = np.random.default_rng(5)
    lost, gained, count = 400, 150, 10_000  # of a network that loses 2.5 points
    broken = 0
    for _ in range(50):
        answers = rng.choice([1, -1, 0], size=1_000, p=[lost / count, gained / count, 1 - (lost + gained) / count])
        pair = Paired(
            samples=1_000,
            float_right=0,
            right=0,
            lost=int((answers == 1).sum()),
            gained=int((answers == -1).sum()),
            same=0,
            decibels=(),
        )
        bound = prove(read_claim("drop<=1"), pair, confidence=0.95).bound
        broken += bound < 100 * (lost - gained) / count
    assert broken <= 4
