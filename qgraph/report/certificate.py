"""A certificate as one HTML page, without scripts or external files."""

from __future__ import annotations

from qgraph.jobs.certify import Certificate, described
from qgraph.report.html import Markup, element
from qgraph.report.page import head
from qgraph.report.parts import number, table, versions_text


def render_certificate(certificate: Certificate) -> str:
    """The whole page."""
    title = f"Certificate of {certificate.model.name}"
    verdict = "Every claim holds" if certificate.holds else "Not every claim holds"
    asked = f"at {100 * certificate.confidence:g} % confidence, on {certificate.counts['samples']:,} samples"
    body = element(
        "body",
        element("header", element("h1", title), element("p", f"{verdict} {asked}.")),
        element("main", _claims(certificate), _facts(certificate), _artefacts(certificate), id="results"),
        element("footer", element("p", f"{certificate.measured.date}, {versions_text(certificate.measured.versions)}")),
    )
    return f"<!DOCTYPE html>\n{element('html', head(title), body, lang='en')}\n"


def _claims(certificate: Certificate) -> Markup:
    rows = [
        (
            proof.claim,
            "holds" if proof.holds else "not proven",
            number(100 * proof.reached, 2),
            number(proof.observed, 2),
            number(proof.bound, 2),
            proof.unit,
        )
        for proof in certificate.proofs
    ]
    columns = ("claim", "verdict", "sure, %", "observed", "proven", "unit")
    return table("Claims about all data behind the samples, by exact tests", columns, rows, left=2, stacked=True)


def _facts(certificate: Certificate) -> Markup:
    return table("Proven and measured", ("what", "value"), described(certificate), left=2)


def _artefacts(certificate: Certificate) -> Markup:
    named = {"model": certificate.model, "float model": certificate.against, "samples": certificate.data}
    named |= {} if certificate.plan is None else {"plan": certificate.plan}
    rows = [(kind, artefact.name, element("code", artefact.digest)) for kind, artefact in named.items()]
    return table("What it is about", ("what", "name", "SHA-256"), rows, left=3)
