"""`qgraph evaluate`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli.console import next_step, number, progress, show, show_json, silence_warnings, table
from qgraph.cli.dry_run import dry_run_option
from qgraph.cli.help import Command
from qgraph.cli.invocation import READING, words_of
from qgraph.cli.kinds import PATH
from qgraph.cli.options import data_options, executor_option, made_from_option, preprocessing, run_options


@click.command(cls=Command, short_help="Measure accuracy, or distance from float.")
@click.argument("model", type=PATH)
@data_options(required=True)
@click.option("--against", type=PATH, metavar="FLOAT.onnx", help="Also compare the outputs with those of this model.")
@made_from_option
@executor_option
@dry_run_option()
@run_options
def evaluate(
    model: str,
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    against: str | None,
    plan: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure the accuracy of MODEL on labelled data, or its distance from another model.

    Images are normalised by --mean and --std, or as in the plan that MODEL was made from.

    \b
    Examples:
      qgraph evaluate small.onnx --data test.npz
      qgraph evaluate small.onnx --data images/ --made-from plan.json --against model.onnx --json
    """
    from qgraph.assess.evaluate import evaluate as run_evaluate

    if quiet:
        silence_warnings()
    result = run_evaluate(
        model,
        data,
        against=against,
        preprocessing=preprocessing(mean, std, default=plan),
        progress=progress(quiet or as_json),
        **options,
    )
    if as_json:
        show_json(result.to_dict())
        return
    rows = table(f"{model} on {result.count:,} samples", "measure", "value")
    if result.top1 is not None:
        rows.add_row("top-1 accuracy, %", number(result.top1))
    if result.against_top1 is not None:
        rows.add_row(f"top-1 accuracy of {against}, %", number(result.against_top1))
    if result.kl is not None:
        rows.add_row("KL divergence, nats", f"{result.kl:.5f}")
    for name, decibel in result.outputs.items():
        rows.add_row(f"SQNR of {name}, dB", "exact" if decibel is None else number(decibel))
    show(rows)
    if against is None:
        words = ("evaluate", model, "--data", data, *words_of(*READING, "--made-from"), "--against", "model.onnx")
        next_step("how far it is from the float model", *words)
    else:
        next_step("which layers lose it", "compare", against, model, "--data", data, *words_of(*READING, "--made-from"))
