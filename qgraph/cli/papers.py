"""Options for what the papers say: their protocols, and the hyper-parameters of methods."""

from __future__ import annotations

from typing import Any

import click

from qgraph.cli.help import grouped
from qgraph.plan.registry import methods_with_papers
from qgraph.plan.words import PROTOCOLS


class _ProtocolOption(click.Option):
    """`--protocol`, whose help names the methods that have a paper."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0], record[1].replace("NAMES", ", ".join(methods_with_papers())))


protocol_option = grouped(
    "Options",
    click.option(
        "--protocol",
        cls=_ProtocolOption,
        type=click.Choice(PROTOCOLS),
        help="deploy: what measures best and runs fast (default). paper: as the method's own paper has it (NAMES; "
        "docs/methods says what differs, and why).",
    ),
)
gradients_option = grouped(
    "Running",
    click.option(
        "--gradients",
        type=click.Choice(["portable", "training"]),
        help="What differentiates when samples are distilled: standard operators (default), or onnxruntime-training.",
    ),
)


def setting_option(config: Any, name: str, kind: Any, text: str, *, flag: str | None = None) -> Any:
    """An option for a field of a method's dataclass of hyper-parameters, whose default the help shows."""
    default = getattr(config, name)
    shown = f"{text}  [default: {default}]" if isinstance(default, (int, float, str)) else text
    if isinstance(default, bool):
        return click.option(f"--{name}/--no-{name}", default=None, help=text)
    metavar = None if isinstance(kind, click.Choice) else "X" if kind is float else "N"
    return click.option(flag or f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=shown)
