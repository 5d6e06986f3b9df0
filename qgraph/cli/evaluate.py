"""`qgraph evaluate` and `qgraph compare`."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli.console import number, progress, show, show_json, silence_warnings, table
from qgraph.cli.options import data_options, preprocessing, run_options
from qgraph.comparison import SAMPLES
from qgraph.comparison import compare as run_compare
from qgraph.evaluation import evaluate as run_evaluate


@click.command()
@click.argument("model")
@data_options(required=True)
@click.option("--against", metavar="FLOAT.onnx", help="Also compare outputs with this model's.")
@run_options
def evaluate(
    model: str,
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    against: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Accuracy of MODEL on labelled data, or its distance from another model.

    \b
    Examples:
      qgraph evaluate small.onnx --data test.npz
      qgraph evaluate small.onnx --data images/ --against model.onnx --json
    """
    if quiet:
        silence_warnings()
    result = run_evaluate(
        model,
        data,
        against=against,
        preprocessing=preprocessing(mean, std),
        progress=progress(quiet or as_json),
        **options,
    )
    if as_json:
        show_json(result.to_dict())
        return
    rows = table(f"{model} on {result.count:,} samples", "measure", "value")
    if result.top1 is not None:
        rows.add_row("top-1 accuracy, %", number(result.top1))
    if result.kl is not None:
        rows.add_row("KL divergence, nats", f"{result.kl:.5f}")
    for name, decibel in result.outputs.items():
        rows.add_row(f"SQNR of {name}, dB", "exact" if decibel is None else number(decibel))
    show(rows)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="FLOAT.onnx MODEL...")
@data_options(required=True)
@run_options
def compare(
    models: tuple[str, ...],
    data: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    limit: int | None,
    as_json: bool,
    quiet: bool,
    threads: int | None,
) -> None:
    """Layer by layer: where quantized models part ways with the float one, the first given.

    SQNR of every layer's result, with the errors of all layers before it.

    \b
    Example:
      qgraph compare model.onnx small.onnx --data test.npz --limit 64
    """
    if len(models) < 2:
        raise click.UsageError("compare needs the float model and at least one other")
    layers = run_compare(
        models[0],
        models[1:],
        data,
        preprocessing=preprocessing(mean, std),
        limit=limit or SAMPLES,
        threads=threads,
        progress=progress(quiet or as_json),
    )
    if as_json:
        show_json(
            {
                "models": list(models[1:]),
                "layers": [{"name": r.layer, "tensor": r.tensor, "sqnr_db": list(r.sqnr_db)} for r in layers],
            }
        )
        return
    rows = table(f"SQNR against {models[0]}, dB", "layer", *models[1:])
    for row in layers:
        rows.add_row(row.layer, *(number(value, 1) for value in row.sqnr_db))
    show(rows)
