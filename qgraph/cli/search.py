"""`qgraph search`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.console import next_step, progress, say, show, show_json, silence_warnings, table
from qgraph.cli.dry_run import dry_run_option
from qgraph.cli.help import Command, Renamed, grouped
from qgraph.cli.invocation import whole_command
from qgraph.cli.kinds import FOLDER, OUTPUT, PATH, Bits, Share, Shown
from qgraph.cli.options import (
    data_options,
    executor_option,
    given,
    preprocessing,
    recipe_options,
    run_options,
)
from qgraph.cli.papers import protocol_option, setting_option
from qgraph.cli.recipe_file import recipe_file_options
from qgraph.errors import UsageError
from qgraph.methods.qrater.config import INGREDIENTS, OBJECTIVES, SEARCHES, SearchConfig
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.jobs.search import Searched
    from qgraph.methods.qrater.search import Found
    from qgraph.plan.plan import Rounding

DEFAULT = SearchConfig()
SHARES = ("accuracy", "task")  # objectives that are shares of correct answers
SURVIVORS = "survivors"  # the option for the field `keep`, which is a recipe's word for layers to leave
_NAMES = (
    "ingredients",
    "objective",
    "search",
    "exponent",
    "passes",
    "first",
    "confidence",
    "tolerance",
    "race",
    "reuse",
    "cache",
    "seed",
)


class Ingredients(Shown):
    """Comma-separated names from clip, round and bias."""

    name = "a,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))
        unknown = [name for name in names if name not in INGREDIENTS]
        if unknown or not names:
            return self.fail(f"'{value}' is not a list of names from {', '.join(INGREDIENTS)}", param, ctx)
        return tuple(name for name in INGREDIENTS if name in names)


def _setting(name: str, kind: Any, text: str, *, flag: str | None = None) -> Any:
    """An option for a field of `SearchConfig`."""
    return setting_option(DEFAULT, name, kind, text, flag=flag)


@click.command(cls=Command, short_help="Search grids by measuring (Q-Rater).")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=OUTPUT, required=True, metavar="PLAN.json", help="Where to write the plan.")
@data_options(required=True)
@recipe_options
@protocol_option
@grouped(
    "Search",
    click.option(
        "--first-layer-bits", type=Bits(), metavar="N", help="With --protocol paper: quantize the first layer too."
    ),
    click.option("--ingredients", type=Ingredients(), help="Any of clip, round, bias.  [default: all]"),
    click.option(
        "--objective",
        type=click.Choice(OBJECTIVES),
        help="What to measure; task: correct answers, then the loss; mse: distance of outputs.  [default: loss where "
        "samples have labels, else mse]",
    ),
    click.option(
        "--explore",
        "search",
        cls=Renamed,
        former="--search",
        type=click.Choice(SEARCHES),
        help=f"bo: Bayesian optimisation after the grid.  [default: {DEFAULT.search}]",
    ),
    click.option("--order", type=click.IntRange(1, 2), help="Order of the rounding scheme.  [default: 2]"),
    _setting("exponent", click.Choice(["distance", "printed"]), "Reading of Eq. 6: as its text means, or as printed."),
    _setting("passes", int, "How many times to go through the layers."),
    _setting("first", int, "Samples in the first round of a race."),
    click.option(
        "--confidence",
        type=Share(),
        help=f"Confidence of all tests in a round together.  [default: {DEFAULT.confidence:.0%}]",
    ),
    _setting("keep", float, "Largest share of candidates that a round keeps, but at least eight.", flag="--survivors"),
    _setting("tolerance", float, "Differences to ignore, as a share of the objective."),
    _setting("race", bool, "Drop candidates that lose on few samples (default), or measure all on all."),
    _setting("reuse", bool, "Measure candidates that compute the same only once (default), or each."),
    _setting("cache", bool, "Keep the results of earlier layers (default), or compute them again."),
    click.option(
        "--cache-mb",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Memory for the cache; the rest goes to disk.  [default: {DEFAULT.cache_bytes // 2**20}]",
    ),
)
@grouped(
    "Running",
    _setting("seed", int, "Seed of Bayesian optimisation."),
)
@grouped("Files", click.option("--opset", type=int, metavar="N", help="Raise the model to opset N first."))
@executor_option
@grouped(
    "Files",
    click.option(
        "--resume",
        type=FOLDER,
        metavar="DIR",
        help="Folder for checkpoints, from which an interrupted search continues.  [default: PLAN.json.search]",
    ),
)
@recipe_file_options
@dry_run_option("output")
@run_options
def search(model: str, output: str, resume: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Search clips, roundings and bias shifts for MODEL by measuring the task (Q-Rater).

    Every evaluation is kept in the folder --resume: after a crash, Ctrl-C or a full disk, the same command continues.

    \b
    Examples:
      qgraph search model.onnx --data train.npz --limit 1024 -o plan.json --weights 4 --activations 4
      qgraph search model.onnx --data train.npz -o plan.json --weights 3 --activations 3 --protocol paper --explore bo
    """
    from qgraph.jobs.search import search as run

    if quiet:
        silence_warnings()
    folder = Path(resume) if resume is not None else Path(f"{output}.search")
    try:
        searched = run(
            model,
            options.pop("data"),
            preprocessing=preprocessing(options.pop("mean"), options.pop("std")),
            settings=_settings(options),
            folder=folder,
            progress=progress(quiet or as_json),
            **given(options),
        )
    except KeyboardInterrupt:
        _say_how_to_go_on(folder, model)
        raise
    write_atomically(Path(output), searched.plan.to_json().encode())
    result = _result(searched, output, elapsed())
    if as_json:
        show_json(result)
    elif not quiet:
        _show(searched, result)
        next_step("make a file of the plan", "apply", model, output, "-o", "small.onnx")


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of the search that were passed, taken out of `options`; bits that were not are 4."""
    for name in ("weights", "activations"):
        options[name] = 4 if options[name] is None else options[name]
    order, survivors, megabytes = (options.pop(name) for name in ("order", SURVIVORS, "cache_mb"))
    chosen = {name: options.pop(name) for name in _NAMES} | {"keep": survivors}
    if order == 1:
        chosen["gamma_s"] = ()
    if megabytes is not None:
        chosen["cache_bytes"] = megabytes * 2**20
    if options["protocol"] != "paper" and options["first_layer_bits"] is not None:
        raise UsageError("--first-layer-bits goes with --protocol paper; for deployment give --edge-bits N")
    return {f"qrater.{name}": value for name, value in chosen.items() if value is not None}


def _say_how_to_go_on(folder: Path, model: str) -> None:
    best = folder / "best.plan.json"
    say(f"stopped; the same command continues from {folder}: {whole_command()}")
    if best.exists():
        say(f"the best plan so far makes a file: qgraph apply {shlex.join((model, str(best)))} -o small.onnx")


def _result(searched: Searched, output: str, seconds: float) -> dict[str, Any]:
    found = searched.found
    return {
        "output": output,
        "objective": found.objective,
        "objective_before": found.start,
        "objective_after": _after(found),
        "samples": found.samples,
        "evaluations": {"algorithm": found.cost.asked, "run": found.cost.run},
        "image_forwards": {
            "algorithm": found.cost.asked * found.samples,
            "run": round(found.cost.forwards),
            "ratio": round(found.cost.saving(found.samples), 2),
        },
        "layers": [{"name": name, "objective": mean} for name, mean in found.history],
        "seconds": seconds,
    }


def _show(searched: Searched, result: dict[str, Any]) -> None:
    from qgraph.graph.sites import GraphView
    from qgraph.graph.tensors import nearest

    found, plan = searched.found, searched.plan
    rows = table(
        f"found on {found.samples:,} samples, by {found.objective}",
        "layer",
        "weights, gamma",
        "input, gamma",
        "shift",
        found.objective,
        left=4,
    )
    grids = plan.operand_grids
    means = dict(found.history)
    for layer in GraphView(searched.net).layers:
        quant = plan.layer(layer.name)
        if quant is None:
            continue
        grid = nearest(layer.input, grids)
        rows.add_row(
            quant.name,
            _rounding(quant.weight.bits, quant.weight.rounding),
            "float" if grid is None else _rounding(grid.bits, grid.rounding),
            "yes" if quant.bias_shift else "no",
            _measured(found.objective, means[quant.name]),
            weight=-means[quant.name],
        )
    show(rows)
    show(_gain(found))
    forwards = result["image_forwards"]
    show(
        f"{result['output']}: {found.cost.run:,} evaluations for {found.cost.asked:,} of Algorithm 1, "
        f"{forwards['run']:,} image-forwards for {forwards['algorithm']:,} ({forwards['ratio']:.1f}x fewer), in "
        f"{result['seconds']:.1f} s"
    )


def _rounding(bits: int, rounding: Rounding | None) -> str:
    """Bits, and the parameters of their rounding unless it is to nearest."""
    if rounding is None:
        return f"{bits}"
    second = "" if rounding.gamma_s is None else f" {rounding.gamma_s:.2f}"
    return f"{bits}, {rounding.gamma_n:+.1f}{second}"


def _after(found: Found) -> float:
    return found.history[-1][1] if found.history else found.start


def _measured(objective: str, mean: float) -> str:
    """A mean objective as people know it: accuracy in percent, and losses and distances as positive numbers."""
    return f"{100 * mean:.2f} %" if objective in SHARES else f"{abs(mean):.5f}"


def _gain(found: Found) -> str:
    """What the search gained over the plan that it started from."""
    before, after = found.start, _after(found)
    texts = f"{_measured(found.objective, before)} -> {_measured(found.objective, after)}"
    change = f"{100 * (after - before):+.2f} points"
    if found.objective not in SHARES:
        change = f"{abs(after) / abs(before) - 1:+.0%}" if before else "no change"
    return f"gained: {found.objective} {texts} ({change}) over the plan it started from, on the same samples"
