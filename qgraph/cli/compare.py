"""`qgraph compare`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.console import PRIOR_REJECTED, next_step, number, progress, show, show_json, silence_warnings, table
from qgraph.cli.help import Command
from qgraph.cli.kinds import PATH, Bits
from qgraph.cli.options import data_options, given, made_from_option, preprocessing, run_options

if TYPE_CHECKING:
    from qgraph.assess.ablation import Ablation
    from qgraph.assess.compare import LayerComparison


@click.command(cls=Command, short_help="Compare models layer by layer.")
@click.argument("models", type=PATH, nargs=-1, required=True, metavar="FLOAT.onnx MODEL...")
@data_options(required=True)
@click.option("--ablation", type=click.Choice(["aciq"]), help="Try all combinations of a method's ingredients.")
@click.option(
    "--calibration-data",
    "calibration",
    type=PATH,
    metavar="PATH",
    help="Samples for the statistics of --ablation (256 are read).",
)
@click.option("--weights", type=Bits(), help="Bits of weights in --ablation.  [default: 4]")
@click.option("--activations", type=Bits(), help="Bits of activations in --ablation.  [default: 4]")
@made_from_option
@click.option("--format", type=click.Choice(["qdq", "float"]), help="Format of --ablation.  [default: float]")
@run_options
def compare(
    models: tuple[str, ...], data: str, ablation: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Compare quantized models layer by layer with the float model, which comes first.

    Shows the SQNR of every layer's result, including the errors of all layers before it. A star marks layers that read
    a tensor which ACIQ's priors do not describe. --ablation aciq takes one float model and shows what each ingredient
    of the method contributes, in all 16 combinations of clipping, bias correction, and bits per channel of weights and
    of activations, and in 8 more with the bias correction that is the default here.

    \b
    Examples:
      qgraph compare model.onnx small.onnx --data test.npz --limit 64
      qgraph compare model.onnx --ablation aciq --data test.npz --calibration-data images.npz
    """
    from qgraph.assess.ablation import ablate
    from qgraph.assess.compare import SAMPLES
    from qgraph.assess.compare import compare as run_compare

    if quiet:
        silence_warnings()
    options["preprocessing"] = preprocessing(options.pop("mean"), options.pop("std"), default=options.pop("plan"))
    options["progress"] = progress(quiet or as_json)
    only_ablation = given({name: options.pop(name) for name in ("calibration", "weights", "activations", "format")})
    if ablation is not None:
        if len(models) != 1:
            raise click.UsageError("--ablation takes one float model")
        result = ablate(models[0], data, **only_ablation, **options)
        show_json(result.to_dict()) if as_json else _show_ablation(result, models[0])
        return
    if only_ablation:
        raise click.UsageError("--calibration-data, --weights, --activations and --format belong to --ablation")
    if len(models) < 2:
        raise click.UsageError("compare needs the float model and at least one other")
    options["limit"] = options["limit"] or SAMPLES
    layers = run_compare(models[0], models[1:], data, **options)
    if as_json:
        show_json(_described(models, layers))
    else:
        _show_layers(models, layers)
        next_step("which layers run on integers", "inspect", models[-1], "--fused")


def _described(models: Sequence[str], layers: Sequence[LayerComparison]) -> dict[str, Any]:
    rows = [
        {
            "name": row.layer,
            "tensor": row.tensor,
            "sqnr_db": list(row.sqnr_db),
            "prior_rejected": list(row.prior_rejected),
        }
        for row in layers
    ]
    return {"models": list(models[1:]), "layers": rows}


def _show_layers(models: Sequence[str], layers: Sequence[LayerComparison]) -> None:
    rows = table(f"SQNR against {models[0]}, dB", "layer", *models[1:], heaviest="those of the largest errors")
    for row in layers:
        cells = zip(row.sqnr_db, row.prior_rejected, strict=True)
        worst = min((value for value in row.sqnr_db if value is not None), default=math.inf)
        texts = (number(value, 1) + (" *" if rejected else "") for value, rejected in cells)
        rows.add_row(row.layer, *texts, weight=-worst)
    show(rows)
    if any(any(row.prior_rejected) for row in layers):
        show(PRIOR_REJECTED)


def _show_ablation(result: Ablation, model: str) -> None:
    """Print the combinations and the average effects."""
    from qgraph.assess.ablation import CORRECTION, INGREDIENTS

    rows = table(f"{model}: combinations", *INGREDIENTS, "top-1 %", "SQNR dB", left=len(INGREDIENTS))
    for combination in (*result.combinations, *result.by_inputs):
        mark = "by inputs" if combination.by_inputs else "x"
        marks = ((mark if name == CORRECTION else "x") if used else "" for name, used in combination.named)
        rows.add_row(*marks, number(combination.top1), number(combination.sqnr_db))
    measure = "sqnr_db" if result.float_top1 is None else "top1"
    effects = result.effects(measure)
    unit = "dB" if measure == "sqnr_db" else "points"
    title = f"average effect of each ingredient over the combinations without it, {unit}"
    chart = table(title, "ingredient", "", "effect", left=2)
    longest = max(max(map(abs, effects.values())), 1e-9)
    for name, effect in effects.items():
        chart.add_row(name, ("█" if effect > 0 else "░") * round(40 * abs(effect) / longest), f"{effect:+.2f}")
    if result.float_top1 is not None:
        show(f"float: {result.float_top1:.2f} %")
    show(rows, chart)
