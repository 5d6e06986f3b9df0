"""The command line as a plan keeps it: what decides the result, without where it goes and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

_ELSEWHERE = {"-o", "--output", "--plan", "--report", "--resume", "--threads", "--save-recipe", "--log-file"}
_SHOWN = {"--json", "--quiet", "-v", "--verbose"}


def whole_command() -> str:
    """The command that runs, as it was given."""
    return shlex.join(("qgraph", *(click.get_current_context().find_root().obj or ())))


def command() -> str:
    """The command that runs, so that the same inputs give the same text: `qgraph quantize model.onnx --weights 4`."""
    arguments: Sequence[str] = click.get_current_context().find_root().obj or ()
    kept, skip = ["qgraph"], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if not skip and name not in _ELSEWHERE | _SHOWN:
            kept.append(argument)
        skip = not skip and name in _ELSEWHERE and "=" not in argument
    return shlex.join(kept)
