"""`qgraph whatif`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.console import next_step, number, progress, show, show_json, silence_warnings, table
from qgraph.cli.help import Command, Renamed
from qgraph.cli.invocation import command, words_of
from qgraph.cli.kinds import OUTPUT, PATH
from qgraph.cli.options import data_options, preprocessing, run_options, set_option
from qgraph.errors import UsageError
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.assess.verdict import Verdict
    from qgraph.jobs.whatif import WhatIf


@click.command(cls=Command, short_help="Try other bits for some layers of a plan.")
@click.argument("model", type=PATH)
@click.argument("plan", type=PATH, required=False)
@set_option
@data_options()
@click.option(
    "--calibration",
    "statistics",
    cls=Renamed,
    former="--statistics",
    type=PATH,
    metavar="FILE",
    help="File of statistics of the model.  [default: that beside the plan]",
)
@click.option("--latency", is_flag=True, help="Foretell the latency of both plans on this machine.")
@click.option("-o", "--output", type=OUTPUT, metavar="PLAN.json", help="Where to write the new plan.")
@run_options
def whatif(
    model: str,
    plan: str | None,
    changes: tuple[str, ...],
    data: str | None,
    statistics: str | None,
    output: str | None,
    as_json: bool,
    quiet: bool,
    latency: bool,
    **options: Any,
) -> None:
    """Show what other bits for some layers of PLAN would change: errors, size, and with --data the outputs.

    Errors are predicted from the statistics beside the plan, without running the model. Without PLAN, the change is to
    the plan that qgraph quantize makes.

    \b
    Examples:
      qgraph whatif model.onnx plan.json --set 'stem/conv:weights=3' --set 'layer2.*:activations=6'
      qgraph whatif model.onnx plan.json --set '*:weights=4' --data test.npz -o plan4.json
    """
    from qgraph.cli.quantize import statistics_beside
    from qgraph.jobs.quantize import quantize
    from qgraph.jobs.whatif import whatif as run
    from qgraph.plan.plan import QuantPlan

    if quiet:
        silence_warnings()
    if not changes:
        raise UsageError("say what to change, such as --set 'stem/conv:weights=3'; qgraph inspect lists the layers")
    base = None if plan is None else QuantPlan.load(plan)
    options["preprocessing"] = preprocessing(options.pop("mean"), options.pop("std"), default=base)
    options["progress"] = progress(quiet or as_json)
    known: Any = statistics
    if base is not None and plan is not None:
        beside = statistics_beside(plan)
        known = statistics or (beside if beside.exists() else None)
    else:
        fresh = quantize(model, data, measure=False, guard="off", **options)
        base, known = fresh.plan, statistics or fresh.observed
    found = run(model, base, changes, data, statistics=known, latency=latency, **options)
    if output is not None:
        made = {**(base.made or {}), "command": command()}
        write_atomically(Path(output), dataclasses.replace(found.plan, quality=None, made=made).to_json().encode())
    if as_json:
        show_json(found.to_dict())
    elif not quiet:
        _show(found, known=known is not None or data is not None)
        if output is not None:
            next_step("make a file of the new plan", "apply", model, output, "-o", "small.onnx")
        else:
            next_step(
                "write the new plan", "whatif", model, *([plan] if plan else []), *words_of("--set"), "-o", "new.json"
            )


def _show(found: WhatIf, *, known: bool) -> None:
    measured = found.quality is not None
    columns = ["layer", "weights", "activations", "predicted dB", *(["measured dB"] if measured else [])]
    rows = table("layers that change", *columns)
    for before, after in found.layers:
        cells = [(before.weight_bits, after.weight_bits), (before.activation_bits, after.activation_bits)]
        errors = [(before.predicted_sqnr_db, after.predicted_sqnr_db)]
        if measured:
            errors.append((before.simulated_sqnr_db, after.simulated_sqnr_db))
        texts = [_change(*(str(v if v is not None else "-") for v in pair)) for pair in cells]
        rows.add_row(before.name, *texts, *(_change(*(number(v, 1) for v in pair)) for pair in errors))
    show(rows)
    if not known:
        show("no statistics beside the plan: give --calibration or --data to predict errors")
    for name, before_text, after_text in _outcomes(found):
        show(f"{name}: {before_text} -> {after_text}")


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _outcomes(found: WhatIf) -> list[tuple[str, str, str]]:
    before, after = found.nbytes
    rows = [("size", f"{before:,} bytes", f"{after:,} bytes ({after / before - 1:+.1%})")]
    if found.latency is not None:
        old_time, new_time = found.latency
        rows.append(("latency / float, foretold", f"{old_time.ratio:.2f}", f"{new_time.ratio:.2f}"))
    if found.quality is not None:
        old, new = found.quality
        pairs = zip(old.outputs, new.outputs, strict=True)
        rows += [(f"output {b.name}, dB", _db(b.sqnr_db), _db(a.sqnr_db)) for b, a in pairs]
        rows += [(name, _after(old, name), _after(new, name)) for name in ("accuracy", "metric") if getattr(new, name)]
    return rows


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _after(verdict: Verdict, name: str) -> str:
    return f"{getattr(verdict, name).after:.4g}"
