"""`qgraph warmup`."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Any

import click

from qgraph.cli.clock import elapsed
from qgraph.cli.console import next_step, progress, show, silence_warnings
from qgraph.cli.help import Command
from qgraph.cli.log import log_options

JOBS: tuple[dict[str, Any], ...] = (
    {"weights": 8, "activations": 8},
    {"weights": 4, "activations": 4},
    {"weights": 4, "activations": 8, "symmetric": True, "clip": "kl"},
)
"""What to quantize the demo's network with: together they use the kernels of `qgraph quantize`."""


@click.command(cls=Command, short_help="Compile kernels ahead of the first run.")
@click.option("--quiet", is_flag=True, help="Print nothing.")
@log_options
def warmup(quiet: bool) -> None:
    """Compile the kernels of `qgraph quantize` now, so that its first run need not: for container images.

    Kernels are kept in NUMBA_CACHE_DIR, else beside the package or in the user's cache folder. They are compiled for
    the processor of this machine; on another kind of processor the first run compiles them once more.

    \b
    Example:
      qgraph warmup
    """
    from qgraph.jobs.quantize import quantize
    from qmath.kernels.plain import compile_grids

    silence_warnings()
    bars = progress(quiet)
    compile_grids()
    with as_file(files("qgraph") / "demo_assets") as assets, bars.stage("compiling", len(JOBS)) as advance:
        for options in JOBS:
            data = assets / "digits_calibration.npz"
            quantize(assets / "digits.onnx", data, limit=64, measure=False, guard="off", **options)
            advance(1)
    if not quiet:
        show(f"kernels are compiled, in {elapsed():.1f} s")
        next_step("it starts at once", "quantize", "model.onnx", "-o", "small.onnx")
