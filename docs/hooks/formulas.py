"""Set formulas as MathML, which browsers draw by themselves: no script, and nothing to load.

`$x$` and `$$...$$` are marked by `pymdownx.arithmatex`; what it leaves is turned from TeX into MathML here.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_MARKED = re.compile(r'<(span|div) class="arithmatex">\\(?:\(|\[)(.*?)\\(?:\)|\])</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """The page with every formula as MathML."""
    return _MARKED.sub(lambda found: mathml(html.unescape(found[2]), block=found[1] == "div"), content)


def mathml(tex: str, *, block: bool) -> str:
    """A formula, in a line of its own or in the text."""
    drawn: str = convert(tex.strip(), display="block" if block else "inline")
    return f'<div class="formula">{drawn}</div>' if block else drawn
