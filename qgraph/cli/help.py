"""Commands whose --help shows options in groups and examples that fit the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from qgraph.cli import log
from qgraph.cli.kinds import OutputText, PathText
from qgraph.running.files import check_outputs

_HYPHEN = "\u2011"  # stands for a hyphen where no line may end
_COLUMN, _NARROW_COLUMN, _ROOMY = 30, 24, 72  # characters: of names, where the terminal is narrow, and when it is not
F = TypeVar("F", bound=Callable[..., Any])
AT_THE_END = "qgraph.at_the_end"  # in `ctx.meta`: by option, a path and what writes it when the command is over
GROUPS = ("Options", "Data", "Grids", "Layers", "Mixed bits", "Search", "Training", "Judging", "Files", "Running")


def grouped(title: str, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """These options, under a title of `GROUPS` unless they have one."""

    def decorate(f: F) -> F:
        for option in reversed(options):
            before = len(getattr(f, "__click_params__", ()))
            f = option(f)
            for param in f.__click_params__[before:]:  # type: ignore[attr-defined]
                param.group = getattr(param, "group", title)
        return f

    return decorate


class Renamed(click.Option):
    """An option that still takes its `former` name, without showing it."""

    def __init__(self, *args: Any, former: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.former = former

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        parser.add_option(obj=self, opts=[self.former], dest=self.name, action="store", nargs=1)


class Help(click.Command):
    """Help texts that continue long examples on the next line and break no name of an option."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace(_HYPHEN, "-")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        whole = self.help
        self.help = None if whole is None else "\n".join(_fitting(whole, formatter.width))
        try:
            super().format_help_text(ctx, formatter)
        finally:
            self.help = whole


class Command(Help):
    """A command with options in groups, all groups in the same columns."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        for param in self.params:
            param.group = getattr(param, "group", GROUPS[0])  # type: ignore[attr-defined]

    def invoke(self, ctx: click.Context) -> Any:
        log.begin(ctx.find_root().obj or (self.name or "",))
        self._check_outputs(ctx)
        for _, write in ctx.meta.get(AT_THE_END, {}).values():
            ctx.call_on_close(write)
        return super().invoke(ctx)

    def _check_outputs(self, ctx: click.Context) -> None:
        """Raise unless every file that the command writes is one of its own."""
        paths = [p for p in self.params if isinstance(p.type, PathText)]
        written = {p.opts[0]: ctx.params.get(str(p.name)) for p in paths if isinstance(p.type, OutputText)}
        written |= {option: path for option, (path, _) in ctx.meta.get(AT_THE_END, {}).items()}
        read = [ctx.params.get(str(p.name)) for p in paths if not isinstance(p.type, OutputText)]
        flat = [path for given in read for path in (given if isinstance(given, tuple) else (given,))]
        check_outputs(written, source=ctx.params.get("model"), inputs=flat)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                group = getattr(param, "group", "Running")  # --help is made by click
                records[group].append((record[0], record[1].replace("-", _HYPHEN)))
        most = _COLUMN if formatter.width >= _ROOMY else _NARROW_COLUMN
        column = max(len(name) for lines in records.values() for name, _ in lines if len(name) <= most)
        for title, lines in records.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(column), text) for name, text in lines], col_max=column)


def _fitting(text: str, width: int) -> Iterator[str]:
    """The lines of a help text, with examples of commands broken between options by a backslash."""
    for line in text.split("\n"):
        if not line.lstrip().startswith("qgraph ") or len(line) + 2 <= width:
            yield line
            continue
        indent = line[: len(line) - len(line.lstrip())]
        row = indent
        for part in _with_values(line.split()):
            if len(row) + len(part) + 5 > width and row.strip():
                yield f"{row} \\"
                row = f"{indent}    "
            row += part if row.endswith(" ") or not row else f" {part}"
        yield row


def _with_values(words: list[str]) -> list[str]:
    """Words of a command line, each option together with its value."""
    parts: list[str] = []
    for word in words:
        if parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    return parts
