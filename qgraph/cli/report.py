"""`qgraph report`."""

from __future__ import annotations

from pathlib import Path

import click

from qgraph.cli.console import progress, show, show_json, silence_warnings
from qgraph.cli.help import Command
from qgraph.cli.invocation import command
from qgraph.cli.kinds import OUTPUT, PATH
from qgraph.cli.options import data_options, preprocessing, run_options
from qgraph.running.files import write_atomically


@click.command(cls=Command, short_help="Write a page that compares models.")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="FLOAT.onnx MODEL_OR_PLAN...")
@click.option("-o", "--output", type=OUTPUT, required=True, metavar="OUT.html", help="Where to write the page.")
@data_options()
@run_options
def report(
    models: tuple[str, ...],
    output: str,
    data: str | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    limit: int | None,
    batch: int | None,
    shapes: dict[str, tuple[int, ...]] | None,
    batch_axes: dict[str, int] | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write an HTML page that compares quantized models and plans (.json) with their float model, which comes first.

    Shows accuracy, size and latency, and bits and errors layer by layer. Of data that calibrated a plan, only the
    samples that it held out are used; without --data, errors are measured on distilled samples.

    \b
    Examples:
      qgraph report model.onnx small.onnx --data test.npz -o report.html
      qgraph report model.onnx plan4.json plan8.json other.onnx --data test.npz --limit 1000 -o report.html
    """
    from qgraph.report import render, report_on

    if len(models) < 2:
        raise click.UsageError("report needs the float model and at least one plan or quantized model")
    if quiet:
        silence_warnings()
    result = report_on(
        models[0],
        models[1:],
        data,
        preprocessing=preprocessing(mean, std),
        limit=limit,
        batch=batch,
        shapes=shapes,
        batch_axes=batch_axes,
        command=command(),
        threads=threads,
        progress=progress(quiet or as_json),
    )
    page = render(result).encode()
    write_atomically(Path(output), page)
    if as_json:
        show_json({"output": output, **result.to_dict()})
    elif not quiet:
        count = len(result.variants)
        compared = f"{count} model{'s' if count != 1 else ''}"
        show(f"{output}: {compared} beside {models[0]}, {len(page):,} bytes; open it in a browser")
