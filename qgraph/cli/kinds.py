"""The kinds of values that options take."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import click
from click.shell_completion import CompletionItem


class Shown(click.ParamType):
    """A kind of values that help texts show as `name` is written."""

    separator = ","  # between the parts of a value, as it is written

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name


class PathText(click.types.StringParamType):
    """The path of a file or a folder, which shells complete."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class OutputText(PathText):
    """The path of a file that a command writes; it is checked before anything else is done."""


class FolderText(click.types.StringParamType):
    """The path of a folder."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="dir")]


PATH = PathText()
OUTPUT = OutputText()
FOLDER = FolderText()


class Names(click.types.StringParamType):
    """One of some names, which shells complete; others are for the job to refuse."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]


class Bits(click.ParamType):
    """A number of bits from 2 to 8, or one of some words; with `layers`, also bits layer by layer: head.*=8,*=4."""

    name = "bits"

    def __init__(self, *words: str, layers: bool = False) -> None:
        self.words, self.layers = words, layers

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "|".join(("N", *self.words))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words or isinstance(value, int):
            return value
        if self.layers and "=" in value:
            parts = [part.rpartition("=") for part in value.split(",")]
            if all(name.strip() and bits.strip().isdigit() and 2 <= int(bits) <= 8 for name, _, bits in parts):
                return value
            return self.fail(f"'{value}' is not a list of names and bits from 2 to 8 such as head.*=8,*=4", param, ctx)
        if value.isdigit() and 2 <= int(value) <= 8:
            return int(value)
        words = f" or {' or '.join(self.words)}" if self.words else ""
        return self.fail(f"'{value}' is not a number of bits from 2 to 8{words}", param, ctx)


class Group(Shown):
    """A number of inputs from 2 on, or `none`."""

    name = "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none" or isinstance(value, int):
            return value
        if value.isdigit() and int(value) >= 2:
            return int(value)
        return self.fail(f"'{value}' is not a number of inputs from 2 on, such as 32, or none", param, ctx)


class BitList(Shown):
    """Comma-separated numbers of bits from 2 to 8."""

    name = "2,4,8"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if all(part.isdigit() and 2 <= int(part) <= 8 for part in parts):
            return tuple(sorted({int(part) for part in parts}))
        return self.fail(f"'{value}' is not a list of bits from 2 to 8 such as 2,4,8", param, ctx)


class Numbers(Shown):
    """Comma-separated numbers; fractions such as 127/255 are exact."""

    name = "a,b,c"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(Fraction(part.strip())) for part in value.split(","))
        except (ValueError, ZeroDivisionError):
            return self.fail(f"'{value}' is not a list of numbers such as 0.485,0.456,0.406 or 127/255", param, ctx)


class Share(Shown):
    """A share of one, as 0.95, 95 or 95%."""

    name = "%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            text = str(value).strip()
            number = float(text.removesuffix("%"))
        except ValueError:
            return self.fail(f"'{value}' is not a share such as 95% or 0.95", param, ctx)
        return number / 100 if text.endswith("%") or number > 1 else number


class Threshold(Shown):
    """A number with an optional unit, dB or %: (20.0, "dB")."""

    name = "X[dB|%]"
    separator = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, str]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(dB|%)?\s*", value, re.IGNORECASE)
        if found is None:
            return self.fail(f"'{value}' is not a number such as 0.9, 20dB or 75%", param, ctx)
        unit = "dB" if (found[2] or "").lower() == "db" else found[2] or ""
        return float(found[1]), unit


class Named(Shown):
    """NAME=VALUE: a pair of the name of an input and a value for it."""

    def __init__(self, kind: click.ParamType, example: str) -> None:
        self.kind, self.name = kind, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.rpartition("=")
        if not name or not equals:
            return self.fail(f"'{value}' is not of the form {self.name}", param, ctx)
        return name, self.kind.convert(text, param, ctx)


class Sizes(Shown):
    """Comma-separated sizes of an input."""

    name = "1,3,320,320"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = [part.strip() for part in value.split(",")]
        if all(part.isdigit() and int(part) for part in parts):
            return tuple(map(int, parts))
        return self.fail(f"'{value}' is not a list of sizes such as 1,3,320,320", param, ctx)
