"""`--recipe` and `--save-recipe`: everything that a command line says, as a TOML file.

The keys are the names of options without dashes in front (`weights`, `per-tensor`, `set`) and of arguments (`model`).
What the command line says as well takes precedence.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from qgraph.cli.help import AT_THE_END, Renamed, grouped
from qgraph.cli.kinds import OUTPUT
from qgraph.errors import UsageError, hint
from qgraph.running.files import write_atomically

F = TypeVar("F", bound=Callable[..., Any])
PRESETS = ("fast", "balanced", "smallest", "accurate")
_NOT_KEPT = {"recipe_file", "save_recipe", "verbose", "log_file", "dry_run"}


def recipe_file_options(f: F) -> F:
    """The options `--recipe` and `--save-recipe`."""
    read = click.option(
        "--recipe",
        "recipe_file",
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        callback=_read,
        shell_complete=_complete,
        help=f"Take options from a file, or one of {', '.join(PRESETS)}; the command line takes precedence.",
    )
    write = click.option(
        "--save-recipe",
        type=OUTPUT,
        metavar="FILE.toml",
        expose_value=False,
        callback=_write,
        help="Write the options of this command to a file for --recipe.",
    )
    return grouped("Files", read, write)(f)


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = [CompletionItem(name) for name in PRESETS if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def _read(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    if name is not None:
        ctx.default_map = {**(ctx.default_map or {}), **_defaults(ctx.command, name)}


def _defaults(command: click.Command, name: str) -> dict[str, Any]:
    """The content of a recipe by the names of the command's parameters."""
    known = _keys(command)
    found = {}
    for key, value in _content(name).items():
        if key not in known:
            raise UsageError(f"the recipe {name} has '{key}', which {command.name} does not take{hint(key, [*known])}")
        param, turned = known[key]
        value = _one_of(param, value, f"the recipe {name}: '{key}'")
        found[str(param.name)] = (not value) if turned else value
    return found


def _one_of(param: Any, value: Any, where: str) -> Any:
    """A value of TOML as click takes it for a parameter: a list where that is repeatable, else one value."""
    flag = getattr(param, "is_flag", False)
    values = value if isinstance(value, list) else [value]
    if any(not isinstance(v, str | int | float) or (isinstance(v, bool) and not flag) for v in values):
        raise UsageError(f"{where} must be a text, a number or a list of them")
    if getattr(param, "multiple", False):
        return values
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _content(name: str) -> dict[str, Any]:
    try:
        if name in PRESETS:
            return tomllib.loads((files("qgraph.cli") / "presets" / f"{name}.toml").read_text(encoding="utf-8"))
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the recipe {name}: {why}; give a file, or one of {', '.join(PRESETS)}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {name} is not TOML: {error}") from None


def _keys(command: click.Command) -> dict[str, tuple[Any, bool]]:
    """What a recipe may hold: the parameter that each key stands for, and whether it stands for its opposite."""
    keys: dict[str, tuple[Any, bool]] = {}
    for param in command.params:
        if param.name in _NOT_KEPT:
            continue
        if isinstance(param, click.Argument):
            keys[str(param.name)] = param, False
        keys |= {name[2:]: (param, False) for name in param.opts if name.startswith("--")}
        if isinstance(param, Renamed):
            keys.setdefault(param.former[2:], (param, False))
        keys |= {name[2:]: (param, True) for name in param.secondary_opts if name.startswith("--")}
    return keys


def _write(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Write the recipe when the command has parsed all that it was given."""
    if path is not None:
        ctx.meta[AT_THE_END] = {"--save-recipe": (path, lambda: write_atomically(Path(path), _text(ctx).encode()))}


def _text(ctx: click.Context) -> str:
    given = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    lines = [f"# qgraph {ctx.command.name} --recipe THIS"]
    for key, (param, turned) in _keys(ctx.command).items():
        value = ctx.params.get(str(param.name))
        if turned or value is None or ctx.get_parameter_source(str(param.name)) not in given:
            continue
        lines.append(f"{key} = {_toml(_plain(param, value))}")
    return "\n".join(lines) + "\n"


def _plain(param: click.Parameter, value: Any) -> Any:
    """A converted value as it is written in a recipe."""
    if isinstance(value, dict):  # NAME=VALUE, repeatable
        return [f"{name}={_plain(param, item)}" for name, item in value.items()]
    if isinstance(value, tuple):
        if getattr(param, "multiple", False):
            return list(value)
        return getattr(param.type, "separator", ",").join(map(str, value))
    return value


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)
