"""`qgraph quantize` and `qgraph apply`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.clock import elapsed, with_total
from qgraph.cli.console import PRIOR_REJECTED, number, progress, show, show_json, silence_warnings, table
from qgraph.cli.dry_run import dry_run_option
from qgraph.cli.help import Command, grouped
from qgraph.cli.invocation import command
from qgraph.cli.kinds import OUTPUT, PATH
from qgraph.cli.log import verbose
from qgraph.cli.mixed_options import mixed_options
from qgraph.cli.options import (
    data_options,
    format_options,
    given,
    method_option,
    portable_option,
    preprocessing,
    quality_options,
    recipe_options,
    resume_option,
    run_options,
)
from qgraph.cli.papers import gradients_option, protocol_option
from qgraph.cli.quality import Threshold, check_threshold, hold_against, next_judgement, show_quality
from qgraph.cli.recipe_file import recipe_file_options
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.assess.layer_errors import LayerReport
    from qgraph.jobs.result import Result
    from qgraph.methods.zeroq.allocate import Allocation
    from qgraph.plan.plan import QuantPlan


@click.command(cls=Command, short_help="Make a model smaller and faster.")
@click.argument("model", type=PATH)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, metavar="OUT.onnx", help="Where to write the quantized model."
)
@method_option("NAMES.  [default: aciq with --data, zeroq without]")
@data_options()
@recipe_options
@protocol_option
@mixed_options
@gradients_option
@format_options
@grouped(
    "Grids",
    click.option(
        "--correct-outputs",
        is_flag=True,
        default=None,
        help="Measure the shift of every layer's mean output and undo it in the bias.",
    ),
)
@grouped(
    "Data",
    click.option(
        "--calibration",
        type=PATH,
        metavar="FILE",
        help="File of statistics: read if it exists, written otherwise.",
    ),
)
@grouped("Running", click.option("--seed", type=int, metavar="N", help="Seed of distilled data.  [default: 0]"))
@resume_option
@grouped(
    "Files",
    click.option(
        "--plan",
        type=OUTPUT,
        metavar="PLAN.json",
        help="Also write the plan, and beside it the statistics for whatif.",
    ),
    click.option("--report", type=OUTPUT, metavar="FILE.html", help="Also write a report as an HTML page."),
)
@quality_options
@grouped(
    "Judging",
    click.option(
        "--target-latency",
        metavar="X",
        help="Take at most X of the float model's time (0.6), or so many ms (5ms), as foretold for this machine.",
    ),
    click.option(
        "--guard",
        metavar="DB|off",
        help="Keep every output at or above DB by giving up grids that ruin it.  "
        "[default: 20 if all grids have 8 bits]",
    ),
)
@recipe_file_options
@dry_run_option("output", "plan", "report")
@run_options
def quantize(
    model: str,
    output: str,
    plan: str | None,
    report: str | None,
    fail_below: Threshold | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make MODEL smaller and faster for onnxruntime on the CPU.

    \b
    Examples:
      qgraph quantize model.onnx -o small.onnx
      qgraph quantize model.onnx -o small.onnx --data calibration.npz
      qgraph quantize model.onnx -o small.onnx --data images/ --weights 4 --activations 8
      qgraph quantize model.onnx -o small.onnx --method minmax --weights 4 --activations none
      qgraph quantize model.onnx -o small.onnx --weights mixed --size-mb 0.13
      qgraph quantize model.onnx -o small.onnx --data images/ --activations mixed --average-activation-bits 5
      qgraph quantize model.onnx -o small.onnx --data calibration.npz --target-latency 0.6
      qgraph quantize model.onnx -o small.onnx --data labelled.npz --weights mixed --max-drop 0.5
    """
    from qgraph.jobs.quantize import quantize as run

    if quiet:
        silence_warnings()
    check_threshold(fail_below, measure=options["measure"])
    mean, std = options.pop("mean"), options.pop("std")
    bars = progress(quiet or as_json)
    result = run(
        model,
        preprocessing=preprocessing(mean, std),
        progress=bars,
        on_better=lambda better: better.save(output),
        **given(options),
    )
    nbytes = result.save(output)
    if plan is not None:
        write_atomically(Path(plan), result.described_plan(command=command()).to_json().encode())
        if result.observed is not None:
            result.observed.save(statistics_beside(plan))
    if report is not None:
        from qgraph.report import render, report_of

        write_atomically(
            Path(report), render(report_of(result, name=output, command=command(), progress=bars)).encode()
        )
    if as_json:
        content = result.to_dict(output=output, nbytes=nbytes)
        show_json({**content, "seconds": with_total(result.seconds)})
    elif not quiet:
        _show(result, output, nbytes)
        next_judgement(output, model)
    hold_against(fail_below, result.quality, output)


@click.command(cls=Command, short_help="Quantize a model as a plan says.")
@click.argument("model", type=PATH)
@click.argument("plan", type=PATH)
@click.option(
    "-o", "--output", type=OUTPUT, required=True, metavar="OUT.onnx", help="Where to write the quantized model."
)
@data_options()
@format_options
@portable_option
@quality_options
@run_options
def apply(
    model: str,
    plan: str,
    output: str,
    fail_below: Threshold | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Quantize MODEL as PLAN.json says. Data do not change the file; it is judged on them.

    \b
    Examples:
      qgraph apply model.onnx plan.json -o small.onnx
      qgraph apply model.onnx plan.json -o small.onnx --data test.npz --fail-below 20dB
    """
    from qgraph.jobs.apply import apply as apply_plan
    from qgraph.onnxfile.write import save
    from qgraph.plan.plan import QuantPlan

    if quiet:
        silence_warnings()
    check_threshold(fail_below, measure=options["measure"])
    mean, std = options.pop("mean"), options.pop("std")
    bars, loaded = progress(quiet or as_json), QuantPlan.load(plan)
    reading = preprocessing(mean, std, default=loaded)
    quantized = apply_plan(model, loaded, preprocessing=reading, progress=bars, **given(options))
    nbytes = save(quantized.ir_model, output, source=model)
    if as_json:
        described = None if quantized.quality is None else quantized.quality.to_dict()
        show_json({"output": output, "bytes": nbytes, "float_bytes": quantized.nbytes, "quality": described})
    elif not quiet:
        show(f"{output}: {nbytes:,} bytes ({nbytes / quantized.nbytes:.0%} of {quantized.nbytes:,})")
        show_quality(quantized.quality)
        show_portable(quantized.plan)
        next_judgement(output, model)
    hold_against(fail_below, quantized.quality, output)


def statistics_beside(plan: str) -> Path:
    """The file of statistics that a plan was made from, for `qgraph whatif`."""
    return Path(plan).with_suffix(".statistics.npz")


def show_portable(plan: QuantPlan) -> None:
    """Show what a portable plan gave for being so, and what is not proven."""
    if not plan.portable:
        return
    from qgraph.methods.portable.portable import portable_notes

    floats = [quant.name for quant in plan.layers if quant.runs == "floats"]
    some = "layers" if not floats else f"{len(plan.layers) - len(floats)} of {len(plan.layers)} layers"
    show(
        f"portable: {some} compute the same codes on every processor; qgraph inspect --portable proves it, and names "
        f"what else may round differently"
    )
    if floats:
        more = f" and {len(floats) - _NAMED} more" if len(floats) > _NAMED else ""
        show(f"  computed in floats, which may round differently elsewhere: {', '.join(floats[:_NAMED])}{more}")
    for note in portable_notes(plan):
        show(f"  {note}")


def _decisions(result: Result) -> list[str]:
    """What was decided by measuring, such as floats where integers are slower here, unless it is said elsewhere."""
    from qgraph.methods.portable.portable import portable_notes

    given_up = set() if result.given_up is None else {str(c) for c in result.given_up.concessions}
    elsewhere = {f"portable: {note}" for note in portable_notes(result.plan)} | given_up
    return [n for n in result.plan.notes if n not in elsewhere and _ONE_STEP not in n]


_ONE_STEP = "one step for all channels"
_NAMED = 8  # layers that are named in a line
_KEPT_SHOWN = 12  # the most entries to show of what stays in floating point, largest first


def _operand(layer: LayerReport) -> str:
    """How a layer reads its operand."""
    if layer.runs == "dynamic" or layer.activation_bits is None:
        return "dynamic" if layer.runs == "dynamic" else "float"
    return f"{layer.activation_bits}{' *' if layer.prior_rejected else ''}"


def _allocated(allocation: Allocation | None) -> list[str]:
    """What mixed bits came to."""
    if allocation is None:
        return []
    from qgraph.methods.zeroq.allocate import average_bits
    from qgraph.methods.zeroq.sensitivity import LayerSensitivity

    taken = [pair for part in allocation.parts for pair in part.taken]
    kinds = {
        "weights": [pair for pair in taken if isinstance(pair[0], LayerSensitivity)],
        "activations that layers read": [pair for pair in taken if not isinstance(pair[0], LayerSensitivity)],
    }
    return [
        f"mixed {what}: {average_bits(pairs):.2f} bits on average, {min(b for _, b in pairs)} to "
        f"{max(b for _, b in pairs)}"
        for what, pairs in kinds.items()
        if pairs
    ]


def _error(layer: LayerReport) -> float:
    """The error of a layer, larger being worse: as measured, else as predicted."""
    decibels = (layer.measured_sqnr_db, layer.predicted_sqnr_db)
    return next((-known for known in decibels if known is not None), -math.inf)


def _show(result: Result, output: str, nbytes: int) -> None:
    columns = ("layer", "op", "weights", "activations", "predicted dB", "measured dB")
    layers = table("layers", *columns, left=2, heaviest="those of the largest errors")
    for layer in result.layers_unsimulated:
        layers.add_row(
            layer.name,
            layer.op,
            str(layer.weight_bits),
            _operand(layer),
            number(layer.predicted_sqnr_db, 1),
            number(layer.measured_sqnr_db, 1),
            weight=_error(layer),
        )
    show(layers)
    if any(layer.prior_rejected for layer in result.layers_unsimulated):
        show(PRIOR_REJECTED)
    if result.plan.kept_float:
        largest = sorted(result.plan.kept_float, key=lambda entry: -entry.bytes)
        kept = table("kept in floating point", "layer", "why", "bytes", left=2)
        shown = len(largest) if verbose() else _KEPT_SHOWN
        for entry in largest[:shown]:
            kept.add_row(entry.name, entry.why, f"{entry.bytes:,}")
        show(kept)
        if rest := largest[shown:]:
            show(f"and {len(rest)} more, {sum(e.bytes for e in rest):,} bytes in all (-v shows, --json lists them)")
    for line in _allocated(result.allocation):
        show(line)
    if result.allocation is not None and result.allocation.drop is not None:
        drop = result.allocation.drop
        margin = "" if drop.margin is None else f" +- {drop.margin:.3g}"
        show(
            f"--max-drop: {drop.name} {drop.before:.4g} -> {drop.after:.4g} (difference "
            f"{drop.after - drop.before:+.3g}{margin}) on {drop.samples:,} samples held out from calibration"
        )
    single = sum(_ONE_STEP in note for note in result.plan.notes)
    if single:
        show(f"{single} activations keep one step for all channels; the plan says why (--plan)")
    share = nbytes / result.net.nbytes
    show(f"{output}: {nbytes:,} bytes ({share:.0%} of {result.net.nbytes:,}) in {elapsed():.2f} s")
    show_quality(result.quality)
    show_portable(result.plan)
    if result.given_up is not None and result.quality is not None:
        for line in result.given_up.lines(result.quality):
            show(line)
    for note in (*result.others, *_decisions(result)):
        show(f"measured: {note}")
