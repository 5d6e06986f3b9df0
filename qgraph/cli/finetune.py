"""`qgraph finetune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.clock import elapsed, with_total
from qgraph.cli.console import number, progress, show, show_json, silence_warnings, table
from qgraph.cli.dry_run import dry_run_option
from qgraph.cli.help import Command, Renamed, grouped
from qgraph.cli.invocation import command
from qgraph.cli.kinds import OUTPUT, PATH
from qgraph.cli.options import (
    data_options,
    executor_option,
    format_options,
    given,
    method_option,
    preprocessing,
    quality_options,
    recipe_options,
    resume_option,
    run_options,
)
from qgraph.cli.papers import gradients_option, protocol_option, setting_option
from qgraph.cli.quality import Threshold, check_threshold, hold_against, next_judgement, show_quality
from qgraph.cli.recipe_file import recipe_file_options
from qgraph.methods.lsqplus.config import LsqPlusConfig
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.jobs.finetune import Finetuned

_DEFAULTS = LsqPlusConfig()
_SETTINGS = frozenset(field.name for field in dataclasses.fields(LsqPlusConfig))


def _setting(name: str, kind: Any, text: str) -> Any:
    """An option for a field of `LsqPlusConfig`."""
    return grouped("Training", setting_option(_DEFAULTS, name, kind, text))


@click.command(cls=Command, short_help="Train a model for few bits (LSQ+).")
@click.argument("model", type=PATH)
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    required=True,
    metavar="OUT.onnx",
    help="Where to write the trained, quantized model.",
)
@data_options(own_batch=True)
@method_option("What the training starts from: NAMES.  [default: lsqplus]", trains=True)
@recipe_options
@protocol_option
@gradients_option
@_setting("epochs", int, "Passes over the data (default: 14, 10, 6 or 4 for 2, 3, 4 or more bits; more for few data).")
@_setting("batch", int, "Samples per step.")
@_setting("optimiser", click.Choice(["adam", "sgd"]), "Optimiser of all parameters.")
@_setting(
    "rate", float, "Initial learning rate of weights, for adam relative to their size (default: by the fewest bits)."
)
@_setting("scale_rate", float, "Initial learning rate of scales and offsets (default: --rate).")
@_setting("momentum", float, "Momentum of either optimiser.")
@_setting("weight_decay", float, "Weight decay; multiplied by the rate in every step.")
@_setting("label_weight", float, "Weight of the labels in the loss; the float model's outputs have the rest.")
@_setting("temperature", float, "Temperature of the float model's outputs in the loss.")
@_setting("holdout", float, "Share of the data held out to choose the epoch.")
@grouped(
    "Training",
    click.option(
        "--config",
        "configuration",
        type=click.IntRange(1, 4),
        metavar="1|2|3|4",
        help="Row of LSQ+'s Table 1 for all tensors.",
    ),
    click.option(
        "--init", "initialisation", type=click.Choice(["lsqplus", "lsq", "minmax"]), help="Initial scales and offsets."
    ),
    click.option("--start", type=PATH, metavar="PLAN.json", help="Start from the grids of a plan for MODEL."),
    click.option(
        "--augment/--no-augment",
        default=None,
        help="Mirror and shift images (default: do not). Good for photographs, bad for digits and text.",
    ),
    click.option(
        "--keep-bn/--fold-bn", default=None, help="Normalise by the batch during training (default: fold first)."
    ),
)
@format_options
@grouped(
    "Running",
    click.option("--seed", type=int, metavar="N", help="Seed of order, augmentation and distilled data.  [default: 0]"),
)
@resume_option
@executor_option
@grouped(
    "Files",
    click.option(
        "--plan", type=OUTPUT, metavar="PLAN.json", help="Also write the plan; it names the trained float model."
    ),
    click.option(
        "--network",
        "trained",
        cls=Renamed,
        former="--float",
        type=OUTPUT,
        metavar="NET.onnx",
        help="Also write the float network that the plan is for: the trained one.",
    ),
)
@quality_options
@recipe_file_options
@dry_run_option("output", "plan", "trained")
@run_options
def finetune(
    model: str,
    output: str,
    plan: str | None,
    trained: str | None,
    fail_below: Threshold | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train the weights, scales and offsets of MODEL for few bits (LSQ+), 4 by default.

    Learns from the outputs of MODEL itself, and from labels if the data have them. Without data, samples are distilled
    from MODEL; `qgraph quantize` mostly keeps as much with them, sooner. The fewer the bits, the longer it trains.

    \b
    Examples:
      qgraph finetune model.onnx -o small.onnx --data train.npz --weights 4 --activations 4
      qgraph finetune model.onnx -o small.onnx --data images/ --weights 2 --activations 2 --augment
      qgraph finetune model.onnx -o small.onnx
    """
    from qgraph.jobs.finetune import finetune as run
    from qgraph.onnxfile.write import save

    if quiet:
        silence_warnings()
    check_threshold(fail_below, measure=options["measure"])
    mean, std = options.pop("mean"), options.pop("std")
    passed = given(options)
    if passed.get("start"):
        passed.setdefault("initialisation", "plan")
    settings = {f"lsqplus.{name}": passed.pop(name) for name in list(passed) if name in _SETTINGS}
    passed["settings"] = {**passed.get("settings", {}), **settings}
    result = run(model, preprocessing=preprocessing(mean, std), progress=progress(quiet or as_json), **passed)
    nbytes = result.save(output)
    if plan is not None:
        write_atomically(Path(plan), result.described_plan(command=command()).to_json().encode())
    if trained is not None:
        save(result.net, trained, source=model)
    if as_json:
        content = result.to_dict(output=output, nbytes=nbytes)
        show_json({**content, "seconds": with_total(result.seconds)})
    elif not quiet:
        _show(result, output, nbytes)
        next_judgement(output, model)
    hold_against(fail_below, result.quality, output)


def _show(result: Finetuned, output: str, nbytes: int) -> None:
    schedule = result.schedule
    title = f"{schedule.epochs} epochs, rates {schedule.rate:g} and {schedule.scale_rate:g}"
    rows = table(title, "epoch", "loss", "held-out distance", "held-out accuracy %")
    for index, epoch in enumerate(result.epochs):
        name = "start" if index == 0 else f"{index} (kept)" if index == result.best_epoch else str(index)
        rows.add_row(name, number(epoch.loss, 4), number(epoch.distance, 4), number(epoch.top1))
    show(rows)
    share = nbytes / result.net.nbytes
    show(f"{output}: {nbytes:,} bytes ({share:.0%} of {result.net.nbytes:,}) in {elapsed():.1f} s")
    show_quality(result.quality)
