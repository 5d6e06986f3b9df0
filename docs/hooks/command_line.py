"""Write the reference of the command line from the commands themselves, while MkDocs builds the pages.

A page that has the line `<!-- commands -->` gets every command there: what it does, how it is called, its examples and
its options. `on_page_markdown` is the name that MkDocs calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from qgraph.cli import COMMANDS, cli

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the reference in place of the marker."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """Every command, in the order of `qgraph --help`."""
    top = click.Context(cli, info_name="qgraph")
    return "\n\n".join(described(name, top) for name in COMMANDS)


def described(name: str, top: click.Context) -> str:
    """The section of one command."""
    command = cli.get_command(top, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=top)
    usage = " ".join(f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}".split())
    text, examples = prose(command.help or "")
    parts = [f"## {name}", text, f"```text\n{usage}\n```"]
    if examples:
        parts.append("```sh\n" + "\n".join(examples) + "\n```")
    parts.append("\n".join(options(command, context)))
    return "\n\n".join(part for part in parts if part)


def prose(help_text: str) -> tuple[str, list[str]]:
    """The paragraphs of a help text, and its example command lines."""
    paragraphs, examples = [], []
    for block in re.split(r"\n\s*\n", help_text.replace("\b", "").strip()):
        lines = [line.strip() for line in block.strip().splitlines()]
        if lines and re.fullmatch(r"Examples?:", lines[0]):
            examples += joined(lines[1:])
        elif lines:
            paragraphs.append(escaped(" ".join(lines)))
    return "\n\n".join(paragraphs), examples


def joined(lines: list[str]) -> list[str]:
    """Command lines, with what is continued on the next line put together."""
    found: list[str] = []
    for line in lines:
        if found and not line.startswith(("qgraph ", "python ", "#", "echo ", "source ", "eval ")):
            found[-1] = f"{found[-1].removesuffix(chr(92)).rstrip()} {line}"
        else:
            found.append(line)
    return found


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """A table of the options; one for each group, in the order of their first options, where there are groups."""
    groups: dict[str, list[str]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            names, text = record
            text = escaped(text).replace("|", "\\|")
            groups.setdefault(group_of(parameter), []).append(f"| `{names}` | {text} |")
    for group, rows in groups.items():
        yield "\n".join(([f"**{group}**\n"] if group else []) + ["| option | what it does |\n|---|---|", *rows, ""])


def group_of(option: click.Parameter) -> str:
    """The group that an option is listed in, if the command line has groups."""
    group = getattr(option, "group", None)
    return str(getattr(group, "name", group) or "")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, with options and file names as code."""
    text = text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", text)
