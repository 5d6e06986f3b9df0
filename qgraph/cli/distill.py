"""`qgraph distill`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.console import next_step, progress, show, show_json
from qgraph.cli.dry_run import dry_run_option
from qgraph.cli.help import Command, grouped
from qgraph.cli.kinds import OUTPUT, PATH
from qgraph.cli.options import (
    batch_axis_option,
    batch_option,
    executor_option,
    normalisation_options,
    preprocessing,
    resume_option,
    run_options,
    shape_option,
)
from qgraph.cli.papers import gradients_option, protocol_option
from qgraph.errors import UsageError
from qgraph.running.files import write_atomically

if TYPE_CHECKING:
    from qgraph.methods.zeroq.config import DistillConfig


@click.command(cls=Command, short_help="Make samples from the model (ZeroQ).")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=OUTPUT, required=True, metavar="DATA.npz", help="Where to write the samples.")
@click.option(
    "--count", type=click.IntRange(min=1), default=64, show_default=True, metavar="N", help="How many samples."
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps of Adam, at most.  [default: 60]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="zeroq.FIELD=V",
    help="A hyper-parameter: 'zeroq.rate=0.5', 'zeroq.per=image' (docs/methods/zeroq.md lists them; repeatable).",
)
@protocol_option
@gradients_option
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the initial noise.")
@resume_option
@grouped("Data", *normalisation_options, batch_option, shape_option, batch_axis_option)
@executor_option
@dry_run_option("output")
@run_options
def distill(
    model: str,
    output: str,
    count: int,
    steps: int | None,
    settings: tuple[str, ...],
    protocol: str | None,
    gradients: str | None,
    seed: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch: int | None,
    shapes: dict[str, tuple[int, ...]] | None,
    batch_axes: dict[str, int] | None,
    resume: str | None,
    executor: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Distil samples from the BatchNormalization statistics of MODEL (ZeroQ), for calibration without data.

    Of images, give the --mean and --std they are normalised by: no value then passes what a pixel can be.

    \b
    Example:
      qgraph distill model.onnx -o distilled.npz --count 64
    """
    import numpy as np

    from qgraph.jobs.distil import distilled_inputs
    from qgraph.onnxfile.load import load
    from qgraph.running.job import Job

    inputs = distilled_inputs(
        load(model),
        Job(seed=seed, threads=threads, resume=resume, executor=executor, progress=progress(quiet or as_json)),
        count=count,
        config=_config(settings, protocol, {"zeroq.steps": steps, "zeroq.builder": gradients}),
        batch=batch,
        shapes=shapes,
        axes=batch_axes,
        preprocessing=preprocessing(mean, std),
    )
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **inputs)  # type: ignore[arg-type]
    write_atomically(Path(output), buffer.getvalue())
    seconds = elapsed()
    if as_json:
        made = {name: list(array.shape) for name, array in inputs.items()}
        show_json({"output": output, "count": count, "inputs": made, "seconds": seconds})
    elif not quiet:
        described = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
        show(f"{output}: {described} in {seconds} s")
        next_step("calibrate on these samples", "quantize", model, "--data", output, "-o", "small.onnx")


def _config(texts: tuple[str, ...], protocol: str | None, options: dict[str, Any]) -> DistillConfig:
    """The hyper-parameters of distillation: those of options, of `--set`, and of the protocol."""
    from qgraph.methods.zeroq.config import DistillConfig
    from qgraph.plan.request import choose_recipe

    settings = {name: value for name, value in options.items() if value is not None}
    recipe = choose_recipe("zeroq", False, protocol=protocol, changes=texts, settings=settings)
    if recipe.changes:
        raise UsageError(f"--set {recipe.changes[0]} is for layers, and distilling quantizes none: give zeroq.FIELD=V")
    return recipe.config(DistillConfig)
