"""`qgraph certify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from qgraph.cli.console import next_step, number, progress, show, silence_warnings, table
from qgraph.cli.help import Command, Renamed
from qgraph.cli.invocation import READING, words_of
from qgraph.cli.kinds import OUTPUT, PATH, Share
from qgraph.cli.options import data_options, given, preprocessing, run_options
from qgraph.errors import QGraphError


class NotProven(QGraphError):
    """A claim does not hold, or a certificate is about something else."""


@click.command(cls=Command, short_help="State how sure a claim about a model is.")
@click.argument("model", type=PATH)
@click.option("--against", type=PATH, metavar="FLOAT.onnx", required=True, help="The float model.")
@data_options(required=True)
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="CLAIM",
    help="drop<=POINTS, accuracy>=%, same>=% (of the float model's classes) or sqnr>=DB[@%] (repeatable).",
)
@click.option("--confidence", type=Share(), default="95%", show_default=True, help="How sure a claim has to be.")
@click.option(
    "--made-from",
    "plan",
    cls=Renamed,
    former="--plan",
    type=PATH,
    metavar="PLAN.json",
    help="The plan that MODEL was made from, to be named by its digest; images are normalised as it says.",
)
@click.option("-o", "--output", type=OUTPUT, metavar="OUT.json", help="Where to write the certificate.")
@click.option("--page", type=OUTPUT, metavar="OUT.html", help="Where to write it as a page.")
@click.option("--check", type=PATH, metavar="CERTIFICATE.json", help="Verify this certificate again instead.")
@run_options
def certify(
    model: str,
    against: str,
    data: str,
    claims: tuple[str, ...],
    confidence: float,
    plan: str | None,
    output: str | None,
    page: str | None,
    check: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """State how sure a claim about MODEL is, for all data behind the samples; exit status 1 where it does not hold.

    Samples must be independent, and new to the model: neither trained nor calibrated on. The tests are exact.

    \b
    Examples:
      qgraph certify small.onnx --against model.onnx --data test.npz --claim 'drop<=0.5' -o small.json
      qgraph certify small.onnx --against model.onnx --data test.npz --claim 'same>=98' --claim 'sqnr>=20@90'
      qgraph certify small.onnx --against model.onnx --data test.npz --check small.json
    """
    from qgraph.jobs.certify import Certificate, check_certificate
    from qgraph.jobs.certify import certify as run
    from qgraph.plan.plan import QuantPlan
    from qgraph.running.files import write_atomically

    if quiet:
        silence_warnings()
    if bool(claims) == (check is not None):
        raise click.UsageError("give either --claim, for example --claim 'drop<=0.5', or --check CERTIFICATE.json")
    mean, std = options.pop("mean"), options.pop("std")
    options |= {"preprocessing": preprocessing(mean, std, default=plan), "progress": progress(quiet or as_json)}
    options["plan"] = None if plan is None else QuantPlan.load(plan)
    differences: tuple[str, ...] = ()
    if check is None:
        found = run(model, against, data, claims, confidence=confidence, **given(options))
    else:
        found, differences = check_certificate(Certificate.load(check), model, against, data, **given(options))
    if output is not None:
        write_atomically(Path(output), found.to_json().encode())
    if page is not None:
        from qgraph.report.certificate import render_certificate

        write_atomically(Path(page), render_certificate(found).encode())
    if as_json:
        click.echo(json.dumps({**json.loads(found.to_json()), "differences": list(differences)}, indent=1))
    elif not quiet:
        _show(found, model)
        if output is not None:
            words = (
                "certify",
                model,
                "--against",
                against,
                "--data",
                data,
                *words_of(*READING, "--limit"),
                "--check",
                output,
            )
            next_step("anybody can verify it", *words)
    if differences:
        raise NotProven(f"{check} is not confirmed: {'; '.join(differences)}")
    failed = [f"{p.claim} ({100 * p.reached:.1f} % sure)" for p in found.proofs if not p.holds]
    if failed:
        raise NotProven(
            f"{', '.join(failed)} is not proven at {100 * found.confidence:g} %: give more samples, or claim less"
        )


def _show(found: Any, model: str) -> None:
    from qgraph.jobs.certify import described

    rows = table(
        f"{model} on {found.counts['samples']:,} samples",
        "claim",
        "holds",
        "sure, %",
        "observed",
        "proven",
        "unit",
        text=(1, 5),
    )
    for proof in found.proofs:
        sure = number(100 * proof.reached)
        rows.add_row(
            proof.claim, "yes" if proof.holds else "no", sure, number(proof.observed), number(proof.bound), proof.unit
        )
    show(rows, *(f"{name}: {value}" for name, value in described(found)))
