"""A certificate: what is claimed about a quantized file, how sure that is, and what was proven and measured.

It names both models, the samples and the plan by their digests, so that anyone who has them can check it again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Unpack

from qgraph.assess.claims import Claim, Proof, proof_of_drop, proof_of_share, prove, read_claim
from qgraph.assess.latency import latency
from qgraph.assess.paired import Paired, run_paired
from qgraph.assess.portable import Portable, prove_portable
from qgraph.errors import DataError, ModelError, PlanError, UsageError
from qgraph.onnxfile.load import load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import content_digest, normalise
from qgraph.plan.decode import decode
from qgraph.plan.plan import QuantPlan
from qgraph.running.here import here
from qgraph.running.progress import SILENT, Progress
from qgraph.running.sessions import Session
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Dataset, Reading, open_data

SCHEMA = 1
DEFAULT_CONFIDENCE = 0.95
_VARIES = 0.01  # of the samples: what another processor may answer otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file or data set that the certificate is about: its name, size in bytes (of models), and SHA-256 digest."""

    name: str
    digest: str
    nbytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What is sure for every input: see `qgraph.assess.portable`."""

    integer_layers: int
    float_layers: int
    sums_fit_32_bits: bool
    pairs_fit_16_bits: bool
    inexact_operators: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured here: size and latency relative to float (one sample, one thread), and on what."""

    size: float
    latency: float | None
    cpu: str
    versions: dict[str, str]
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Claims about a quantized file with their proofs; `certify` makes one, `check_certificate` verifies it again.

    `confidence` is what was asked for, in 0..1. The decibels of single samples are not kept.

    Example:
        >>> import qgraph
        >>> qgraph.Certificate.from_json("[]", source="notes.json")
        Traceback (most recent call last):
            ...
        qgraph.errors.DataError: notes.json is not a certificate of qgraph certify: ...
    """

    model: Artefact
    against: Artefact
    data: Artefact
    plan: Artefact | None
    confidence: float
    counts: dict[str, int]
    proofs: tuple[Proof, ...]
    proven: Proven
    measured: Measured
    schema: int = SCHEMA

    @property
    def holds(self) -> bool:
        """Whether every claim is proven at the confidence that was asked for."""
        return all(proof.holds for proof in self.proofs)

    def to_json(self) -> str:
        """JSON text that `from_json` reads back to an equal certificate."""
        return json.dumps({"holds": self.holds, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "the certificate") -> Certificate:
        """Read a certificate.

        Raises `DataError` for anything else.
        """
        try:
            raw = json.loads(text)
            holds = raw.pop("holds")
            if raw["schema"] != SCHEMA:
                raise DataError(f"{source} has schema {raw['schema']}; this version reads {SCHEMA}")
            found = typing.cast(Certificate, decode(cls, raw, "it"))
        except DataError:
            raise
        except (PlanError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = error if isinstance(error, PlanError) else f"{type(error).__name__}: {error}"
            raise DataError(f"{source} is not a certificate of qgraph certify: {said}") from None
        if holds is not found.holds:
            raise DataError(f"{source} contradicts itself: 'holds' is {holds!r}, and its claims say {found.holds}")
        return found

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read the certificate {path}: {getattr(error, 'strerror', None) or error}"
            ) from None
        return cls.from_json(text, source=str(path))


@keeps_threads
def certify(
    model: ModelLike,
    against: ModelLike,
    data: DataLike,
    claims: Sequence[str | Claim],
    *,
    confidence: float = DEFAULT_CONFIDENCE,
    plan: QuantPlan | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Certificate:
    """State with what confidence claims about a quantized model hold on the population behind the samples.

    The tests are exact and paired: both models answer the same samples. They suppose that the samples were drawn
    independently from the population, and took no part in making the model. A certificate at 95 % that says a claim
    holds is wrong for at most 5 % of the sets of samples that could have been drawn.

    Args:
        model: the quantized model, a path, `onnx.ModelProto` or onnx-ir model.
        against: the float model.
        data: samples that neither training nor calibration has seen, with labels for claims about accuracy.
        claims: such as "drop<=0.5" (points), "accuracy>=90", "same>=98" (%), "sqnr>=20" (dB, in 95 % of the samples).
        confidence: from 0.5 to 0.999.
        plan: what the model was made from; it must be for the float model.
        preprocessing, limit, batch, shapes, batch_axes, threads, progress: as in `quantize`.

    Raises:
        UsageError: a claim cannot be read, or the confidence is out of range.
        PlanError: the plan is for another float model.
        DataError: the samples say nothing about a claim, for lack of labels or of classes.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> small = qgraph.quantize(demo / "digits.onnx", activations=None, measure=False).model
        >>> found = qgraph.certify(small, demo / "digits.onnx", demo / "digits_test.npz", ["drop<=1"])
        >>> found.holds, found.proofs[0].reached > 0.95
        (True, True)
    """
    wanted = [claim if isinstance(claim, Claim) else read_claim(claim) for claim in claims]
    if not wanted:
        raise UsageError("a certificate needs a claim, for example drop<=0.5")
    if not 0.5 <= confidence <= 0.999:
        raise UsageError(f"confidence must lie between 50 % and 99.9 %, not {100 * confidence:g} %")
    small, reference = load(model), load(against)
    if plan is not None:
        net = normalise(load(against), fold_bn=plan.fold_bn)
        plan.check_model(net.digest, net.source)
    samples = open_data(data, small, **reading)
    _check_labels(samples, wanted)
    found = run_paired(reference, small, samples, threads=threads, progress=progress)
    _warn_of(found, wanted)
    return Certificate(
        model=_artefact(small),
        against=_artefact(reference),
        data=Artefact(name=samples.description, digest=samples.digest),
        plan=None if plan is None else Artefact(name=plan.recipe, digest=sha256(plan.to_json().encode()).hexdigest()),
        confidence=confidence,
        counts=_counts(found),
        proofs=tuple(prove(claim, found, confidence=confidence) for claim in wanted),
        proven=_proven(prove_portable(small, threads=threads)),
        measured=_measured(small, reference, samples),
    )


def _check_labels(samples: Dataset, claims: Sequence[Claim]) -> None:
    """Raise `DataError` where a claim about accuracy is to be tested on labels that are not one number per sample."""
    claim = next((claim for claim in claims if claim.kind in ("drop", "accuracy")), None)
    if claim is not None and samples.targets is not None:
        raise DataError(
            f"'{claim}' needs one class per sample, but the labels of {samples.description} are an array of "
            f"{samples.targets.shape}; where each row marks its class (one-hot), give labels.argmax(axis=1)"
        )


def _warn_of(found: Paired, claims: Sequence[Claim]) -> None:
    """Warn of samples that cannot have been drawn independently from all data."""
    if found.distinct < found.samples:
        warnings.warn(
            f"only {found.distinct:,} of {found.samples:,} samples differ: the tests suppose independent ones, and are "
            f"surer of repeated ones than they should be; leave repetitions out",
            stacklevel=3,
        )
    if found.classes == 1 < found.samples and any(claim.kind in ("drop", "accuracy") for claim in claims):
        warnings.warn(
            "all labels are of one class: what is proven holds for data of this class alone; are the samples sorted?",
            stacklevel=3,
        )


def check_certificate(
    certificate: Certificate,
    model: ModelLike,
    against: ModelLike,
    data: DataLike,
    *,
    plan: QuantPlan | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> tuple[Certificate, tuple[str, ...]]:
    """Make a certificate with the same claims again, and say in what it differs from the first.

    A difference in digests, in the number of samples, in what is proven, or in whether a claim holds is a difference,
    and so is a proof that does not follow from the certificate's own counts. Counts may vary by 1 % of the samples,
    since processors round differently; sizes of models, times and versions may vary, too. Arguments and errors as in
    `certify`.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> small = qgraph.quantize(demo / "digits.onnx", activations=None, measure=False).model
        >>> three = (small, demo / "digits.onnx", demo / "digits_test.npz")
        >>> again, differences = qgraph.check_certificate(qgraph.certify(*three, ["same>=98"]), *three)
        >>> again.holds, differences
        (True, ())
    """
    claims = [proof.claim for proof in certificate.proofs]
    again = certify(
        model,
        against,
        data,
        claims,
        confidence=certificate.confidence,
        plan=plan,
        threads=threads,
        progress=progress,
        **reading,
    )
    differences = []
    for name in ("model", "against", "data", "plan"):
        mine, theirs = getattr(again, name), getattr(certificate, name)
        if name == "plan" and plan is None:
            continue
        if mine is None or theirs is None or mine.digest != theirs.digest:
            differences.append(f"{name}: the certificate is about {_short(theirs)}, given is {_short(mine)}")
    differences += _contradictions(certificate, again)
    if again.proven != certificate.proven:
        differences.append(f"what is proven: {again.proven}, not {certificate.proven}")
    for new, old in zip(again.proofs, certificate.proofs, strict=True):
        if abs(new.observed - old.observed) > 100 * max(1.5 / again.counts["samples"], _VARIES):
            differences.append(f"'{new.claim}': {old.observed:g} observed in the certificate, {new.observed:g} here")
        if new.holds != old.holds:
            holds = ("does not hold", "holds")
            differences.append(f"'{new.claim}' {holds[new.holds]} here, and {holds[old.holds]} in the certificate")
    return again, tuple(differences)


def _contradictions(certificate: Certificate, again: Certificate) -> Iterator[str]:
    """What does not follow from the certificate's own counts."""
    counts, samples = certificate.counts, again.counts["samples"]
    if counts.get("samples") != samples:
        yield f"counts: the certificate is about {counts.get('samples')} samples, given are {samples}"
        return
    for name in sorted(set(counts) | set(again.counts)):
        theirs, mine = counts.get(name), again.counts.get(name)
        if theirs is not None and (mine is None or abs(mine - theirs) > max(1, _VARIES * samples)):
            yield f"counts: '{name}' is {theirs:,} in the certificate, and {mine} here"
    for proof in certificate.proofs:
        claim = read_claim(proof.claim)
        try:
            follows = _follows(proof, claim, counts, certificate.confidence)
        except (KeyError, ValueError, OverflowError):
            follows = False
        if not follows:
            yield f"'{proof.claim}': what the certificate says of it does not follow from its counts"


def _follows(proof: Proof, claim: Claim, counts: Mapping[str, int], confidence: float) -> bool:
    samples = counts["samples"]
    if claim.kind == "drop":
        again = proof_of_drop(claim, counts["lost"], counts["gained"], samples, confidence=confidence)
    else:
        hits = {"accuracy": "right", "same": "same"}.get(claim.kind)
        found = round(samples * proof.observed / 100) if hits is None else counts[hits]
        again = proof_of_share(claim, found, samples, confidence=confidence)
    numbers = ("reached", "observed", "bound")
    close = all(math.isclose(getattr(again, n), getattr(proof, n), rel_tol=1e-6, abs_tol=1e-9) for n in numbers)
    return close and (again.claim, again.holds, again.unit) == (proof.claim, proof.holds, proof.unit)


def _short(artefact: Artefact | None) -> str:
    return "none" if artefact is None else f"{artefact.name} ({artefact.digest[:12]}...)"


def _artefact(model: Model) -> Artefact:
    return Artefact(name=Path(model.source).name, digest=content_digest(model.ir_model), nbytes=model.nbytes)


def _counts(found: Paired) -> dict[str, int]:
    content = {
        name: getattr(found, name) for name in ("samples", "distinct", "float_right", "right", "lost", "gained", "same")
    }
    return {name: count for name, count in content.items() if count is not None}


def _proven(found: Portable) -> Proven:
    integers = [layer for layer in found.layers if layer.sums is not None]
    return Proven(
        integer_layers=len(integers),
        float_layers=len(found.layers) - len(integers),
        sums_fit_32_bits=found.sums_fit,
        pairs_fit_16_bits=found.pairs_fit,
        inexact_operators=found.inexact,
    )


def _measured(model: Model, reference: Model, samples: Dataset) -> Measured:
    feeds = next(samples.batches(1)).feeds
    try:
        timed = latency(Session(reference.ir_model, threads=1), Session(model.ir_model, threads=1), feeds).ratio
    except ModelError:
        timed = None
    on = here()
    return Measured(
        size=model.nbytes / max(reference.nbytes, 1),
        latency=timed,
        cpu=on.cpu,
        versions=on.versions,
        date=on.date,
    )


def _samples(counts: Mapping[str, int]) -> str:
    """How many samples there are, and how many differ if not all do."""
    samples = counts["samples"]
    distinct = counts.get("distinct", samples)
    return f"{samples:,}" + (f", of which {distinct:,} differ" if distinct < samples else "")


def described(certificate: Certificate) -> list[tuple[str, Any]]:
    """What the certificate says besides its claims, as names and values."""
    proven, measured = certificate.proven, certificate.measured
    fits = ("can", "cannot")
    return [
        ("samples", _samples(certificate.counts)),
        ("on integers", f"{proven.integer_layers} of {proven.integer_layers + proven.float_layers} layers"),
        ("32-bit sums", f"{fits[proven.sums_fit_32_bits]} overflow, whatever the input"),
        ("16-bit pairs", f"{fits[proven.pairs_fit_16_bits]} saturate, on any CPU"),
        ("size", f"{measured.size:.1%} of float"),
        ("latency", "not measured" if measured.latency is None else f"{measured.latency:.2f} of float"),
    ]
