"""Claims about a quantized model, and with what confidence samples prove them.

`drop<=0.5` (points of accuracy, labels needed), `accuracy>=90` (%, labels needed), `same>=98` (% of samples of the
float model's class), `sqnr>=20` (dB of the worst output, in at least 95 % of all samples; `sqnr>=20@90` in 90 %). All
are about the population that the samples were drawn from, independently; the tests are exact (`qmath.drop_confidence`,
`qmath.share_confidence`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

import qmath
from qgraph.assess.paired import Paired
from qgraph.errors import DataError, UsageError

Kind = Literal["drop", "accuracy", "same", "sqnr"]
USUAL_SHARE = 95.0
_ADVICE = "add an array 'labels' to the data, or claim sqnr>=DB"
_UNITS: dict[Kind, str] = {"drop": "points", "accuracy": "%", "same": "%", "sqnr": "% of samples"}
_PATTERN = re.compile(
    r"\s*(drop|accuracy|same|sqnr)\s*(<=|>=)\s*([-+]?\d+\.?\d*|[-+]?\.\d+)\s*(?:@\s*(\d+\.?\d*))?\s*", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim: `bound` of what `kind` names, in its unit; `share` of the samples in %, of `sqnr` alone."""

    kind: Kind
    bound: float
    share: float = USUAL_SHARE

    def __str__(self) -> str:
        sign = "<=" if self.kind == "drop" else ">="
        bound, share = (np.format_float_positional(x, trim="-") for x in (self.bound, self.share))
        return f"{self.kind}{sign}{bound}" + (f"@{share}" if self.kind == "sqnr" else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the samples say about a claim.

    It `holds` if the exact test accepts it with the `confidence` that was asked for. `reached` is the confidence with
    which it is true. `observed` is what the samples show, and `bound` what they prove at the confidence asked for, both
    in `unit`.
    """

    claim: str
    holds: bool
    reached: float
    observed: float
    bound: float
    unit: str


def read_claim(text: str) -> Claim:
    """Read a claim such as `drop<=0.5`.

    Raises `UsageError` for anything else.
    """
    found = _PATTERN.fullmatch(text)
    if found is None or (found[1] == "drop") != (found[2] == "<=") or (found[4] and found[1] != "sqnr"):
        raise UsageError(
            f"'{text}' is not a claim: use drop<=POINTS, accuracy>=PERCENT, same>=PERCENT or sqnr>=DB (or "
            f"sqnr>=DB@PERCENT of the samples)"
        )
    claim = Claim(found[1], float(found[3]), float(found[4] or USUAL_SHARE))  # type: ignore[arg-type]
    percent = {"accuracy": claim.bound, "same": claim.bound, "drop": abs(claim.bound), "sqnr": claim.share}[claim.kind]
    if not 0 <= percent <= 100:
        raise UsageError(f"'{text}': {percent:g} is not a percentage")
    if claim.bound == float("inf"):
        raise UsageError(f"'{text}': the number is larger than any float")
    return claim


def prove(claim: Claim, found: Paired, *, confidence: float) -> Proof:
    """Test a claim on the samples.

    Raises `DataError` if they cannot say anything about it: no labels, or no scores of classes.
    """
    if claim.kind == "drop":
        if found.lost is None or found.gained is None:
            raise DataError(f"'{claim}' needs one score per class and labels: {_ADVICE}")
        return proof_of_drop(claim, found.lost, found.gained, found.samples, confidence=confidence)
    hits = {
        "accuracy": found.right,
        "same": found.same,
        "sqnr": sum(decibel >= claim.bound for decibel in found.decibels),
    }[claim.kind]
    if hits is None:
        raise DataError(f"'{claim}' needs one score per class{' and labels' * (claim.kind == 'accuracy')}: {_ADVICE}")
    return proof_of_share(claim, hits, found.samples, confidence=confidence)


def proof_of_drop(claim: Claim, lost: int, gained: int, samples: int, *, confidence: float) -> Proof:
    """What it says about a drop that so many of the samples were lost and gained."""
    reached = qmath.drop_confidence(lost, gained, samples, drop=claim.bound / 100)
    bound = qmath.drop_bound(lost, gained, samples, confidence=confidence)
    return _proof(claim, confidence, reached, (lost - gained) / samples, bound)


def proof_of_share(claim: Claim, hits: int, samples: int, *, confidence: float) -> Proof:
    """What it says about any other claim that so many of the samples fulfil it."""
    share = claim.share if claim.kind == "sqnr" else claim.bound
    reached = qmath.share_confidence(hits, samples, share=share / 100)
    bound = qmath.share_bound(hits, samples, confidence=confidence)
    return _proof(claim, confidence, reached, hits / samples, bound)


def _proof(claim: Claim, confidence: float, reached: float, observed: float, bound: float) -> Proof:
    return Proof(
        claim=str(claim),
        holds=reached >= confidence,
        reached=reached,
        observed=100 * observed,
        bound=100 * bound,
        unit=_UNITS[claim.kind],
    )
