"""Certificates: made, written, read, checked again, and refused where something else is given."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx.parser
import pytest

import qgraph
from qgraph.assess.claims import proof_of_share, read_claim
from qgraph.cli import main
from qgraph.errors import DataError, PlanError, UsageError
from qgraph.jobs.certify import described
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


def changed(certificate, path, value):
    raw = json.loads(certificate.to_json())
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("model", "digest"), None, r"it\.model\.digest must be of type str"),
        (("data", "name"), 5, r"it\.data\.name must be of type str"),
        (("confidence",), "high", r"it\.confidence must be of type float"),
        (("counts",), [], r"it\.counts must be an object"),
        (("counts", "samples"), "many", r"it\.counts\.samples must be of type int"),
        (("proofs", 0, "claim"), None, r"it\.proofs\[0\]\.claim must be of type str"),
        (("proofs", 0, "more"), 1, "has an unknown field 'more'"),
        (("proven", "inexact_operators"), {"Add": "x"}, r"inexact_operators\.Add must be of type int"),
        (("holds",), False, "contradicts itself: 'holds' is False, and its claims say True"),
        (("proofs", 1, "holds"), False, "contradicts itself: 'holds' is True, and its claims say False"),
    ],
)
def test_a_certificate_of_other_types_is_refused(certificate, path, value, said):
    with pytest.raises(DataError, match=said):
        qgraph.Certificate.from_json(changed(certificate, path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("proofs", 0, "reached"), 0.999999, "'drop<=1': what the certificate says of it does not follow"),
        (("proofs", 0, "bound"), 0.0, "'drop<=1': what the certificate says"),
        (("proofs", 0, "claim"), "drop<=0.9", "'drop<=0.9': what the certificate says"),
        (("proofs", 1, "observed"), 100.0, "'same>=98': what the certificate says"),
        (("proofs", 2, "observed"), 1e308, "'sqnr>=25@95': what the certificate says"),
        (("proofs", 2, "unit"), "%", "'sqnr>=25@95': what the certificate says"),
        (("confidence",), 0.9, "'drop<=1': what the certificate says"),
        (("counts", "lost"), 0, "'drop<=1': what the certificate says"),
        (("counts", "samples"), 10**6, "counts: the certificate is about 1000000 samples, given are 600"),
        (("counts",), {"samples": 600}, "'same>=98': what the certificate says"),
    ],
)
def test_numbers_that_were_altered_are_noticed(certificate, made, path, value, said):
    forged = qgraph.Certificate.from_json(changed(certificate, path, value))
    if path == ("counts", "lost"):
        assert certificate.counts["lost"], "nothing to alter"
    _, differences = qgraph.check_certificate(forged, made / "small.onnx", FLOAT, TEST)
    assert said in " ".join(differences)


def test_numbers_that_agree_with_each_other_alone_are_noticed(certificate, made):
    """Whoever alters a count can compute what follows from it; the samples say otherwise."""
    raw = json.loads(certificate.to_json())
    raw["counts"]["same"] = 590
    proof = dataclasses.asdict(proof_of_share(read_claim("same>=98"), 590, 600, confidence=0.95))
    raw["proofs"][1], raw["holds"] = proof, raw["holds"] and proof["holds"]
    share = proof_of_share(read_claim("sqnr>=25"), 580, 600, confidence=0.95)
    raw["proofs"][2] = dataclasses.asdict(share)
    raw["holds"] = all(one["holds"] for one in raw["proofs"])
    forged = qgraph.Certificate.from_json(json.dumps(raw))
    _, differences = qgraph.check_certificate(forged, made / "small.onnx", FLOAT, TEST)
    said = " ".join(differences)
    assert "counts: 'same' is 590 in the certificate" in said
    assert "'sqnr>=25@95': 96.6667 observed in the certificate, 100 here" in said


def test_samples_that_are_repeated_or_of_one_class_are_warned_of(made):
    held = np.load(TEST)
    images, labels = held["images"][:40], held["labels"][:40]
    twice = {"images": np.concatenate([images, images[:10]]), "labels": np.concatenate([labels, labels[:10]])}
    with pytest.warns(UserWarning, match="only 40 of 50 samples differ"):
        found = qgraph.certify(made / "small.onnx", FLOAT, twice, ["drop<=1"])
    assert found.counts["distinct"] == 40
    assert ("samples", "50, of which 40 differ") in described(found)
    same = labels == labels[0]
    one = {"images": images[same], "labels": labels[same]}
    with pytest.warns(UserWarning, match="all labels are of one class"):
        qgraph.certify(made / "small.onnx", FLOAT, one, ["accuracy>=50"])
    qgraph.certify(made / "small.onnx", FLOAT, one, ["same>=50"])  # says nothing about labels


def test_one_hot_labels_are_told_from_missing_ones(made):
    held = np.load(TEST)
    data = {"images": held["images"][:20], "labels": np.eye(10, dtype=np.float32)[held["labels"][:20]]}
    with pytest.raises(
        qgraph.DataError, match=r"needs one class per sample.*an array of \(20, 10\).*labels.argmax\(axis=1\)"
    ):
        qgraph.certify(made / "small.onnx", FLOAT, data, ["drop<=1"])
    qgraph.certify(made / "small.onnx", FLOAT, data, ["same>=50"])


PRODUCT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,3] y)
<float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { z = MatMul(x, w) BODY }"""


def product(body):
    return onnx.parser.parse_model(PRODUCT.replace("BODY", body))


def test_what_is_no_number_is_right_for_no_claim():
    x = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    plain, none = product("y = Identity(z)"), product("d = Sub(z, z) y = Div(d, d)")
    data = {"x": x, "labels": np.arange(200) % 3}
    claims = ["accuracy>=1", "same>=1", "sqnr>=-100@1"]
    for model, against in ((none, plain), (none, none)):
        found = qgraph.certify(model, against, data, claims)
        assert [proof.observed for proof in found.proofs] == [0, 0, 0]
    assert [proof.observed for proof in qgraph.certify(plain, none, data, claims[1:]).proofs] == [0, 0]


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
            distinct=1_000,
            classes=10,
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
