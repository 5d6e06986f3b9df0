"""HTML and SVG as nested calls; text is escaped unless `element` made it, so a model's names are never markup."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable
from typing import TypeAlias

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})  # control and format characters, surrogates, unassigned


class Markup(str):
    """Text that is HTML already."""


Content: TypeAlias = "str | int | float | Iterable[Content] | None"
Attribute: TypeAlias = "str | int | float | None"
VOID = frozenset({"meta", "link", "img", "br", "hr"})


def element(tag: str, *content: Content, **attributes: Attribute) -> Markup:
    """<tag attributes>content</tag>; `class_` and `aria_label` mean class and aria-label, None omits an attribute."""
    text = "".join(f' {_name(k)}="{escape(_text(v))}"' for k, v in attributes.items() if v is not None)
    if tag in VOID:
        return Markup(f"<{tag}{text}>")
    return Markup(f"<{tag}{text}>{join(content)}</{tag}>")


def join(content: Content) -> Markup:
    """All parts one after the other, with plain text escaped; None is empty."""
    if content is None:
        return Markup("")
    if isinstance(content, Markup):
        return content
    if isinstance(content, (str, int, float)):
        return escape(_text(content))
    return Markup("".join(map(join, content)))


def escape(text: str) -> Markup:
    """The text with <, >, & and quotes escaped, and invisible characters replaced by U+FFFD."""
    seen = "".join("\ufffd" if unicodedata.category(c) in _UNSEEN and c not in "\n\t" else c for c in text)
    return Markup(html.escape(seen, quote=True))


def _name(keyword: str) -> str:
    return keyword.rstrip("_").replace("_", "-")


def _text(value: str | int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
