"""How messages name an option: as a keyword to callers in Python, as a flag on the command line.

A message names each option through `option`, which is one spelling for both:

    raise UsageError(f"{option('weights', None)} leaves nothing to quantize")

says "weights=None leaves nothing to quantize" in Python, and "--weights none leaves ..." in a terminal. The command
line says once, by `speaking_flags`, that its user reads flags.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_FLAGS = {
    "batch_axes": "--batch-axis",
    "changes": "--set",
    "search": "--select",
    "settings": "--set",
    "shapes": "--shape",
    "config.configuration": "--config",
}
_SWITCHES = {("per_channel", False): "--per-tensor", ("symmetric", False): "--asymmetric"}
_UNSAID = object()
_flags = False  # for all threads of the process, which has one user


class Blank(str):
    """A placeholder in the value of an option, such as NAME, which stands there without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@contextmanager
def speaking_flags() -> Iterator[None]:
    """Let messages name options as flags: their reader typed a command."""
    global _flags
    before, _flags = _flags, True
    try:
        yield
    finally:
        _flags = before


def option(name: str, value: Any = _UNSAID) -> str:
    """An option, with a value if one is given, as the reader of a message would write it.

    `name` is the keyword in Python; a setting of `LsqPlusConfig` or `SearchConfig` is called `config.NAME`. A value is
    the one in Python too: None, a number, a list, a mapping; a `Blank` for a placeholder.

    Example:
        >>> from qgraph.running.wording import option, speaking_flags
        >>> option("weights", None), option("keep", ["stem*"]), option("batch_axes", {"x": 1})
        ('weights=None', "keep=['stem*']", "batch_axes={'x': 1}")
        >>> with speaking_flags():
        ...     option("weights", None), option("keep", ["stem*"]), option("batch_axes", {"x": 1})
        ('--weights none', "--keep 'stem*'", '--batch-axis x=1')
    """
    if not _flags:
        return name if value is _UNSAID else f"{name}={value!r}"
    if (name, value if isinstance(value, bool) else None) in _SWITCHES:
        return _SWITCHES[name, value]
    flag = _FLAGS.get(name) or "--" + name.removeprefix("config.").replace("_", "-")
    if value is _UNSAID or value is True:
        return flag
    if value is False:
        return flag.replace("--", "--no-", 1)
    items = value if isinstance(value, list) else [value]
    return " ".join(f"{flag} {_word(item)}" for item in items)


def images_normalised() -> str:
    """The options that normalise images."""
    return "--mean and --std" if _flags else "preprocessing=qgraph.Preprocessing(mean=..., std=...)"


def command(words: str, python: str) -> str:
    """What to run: a command line, or the call that does the same."""
    return words if _flags else python


def _word(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_word(item)}" for name, item in value.items())
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, Blank) else shlex.quote(str(value))
