"""The pages in docs/ against the product: messages that are produced, options that exist, code that parses."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from qgraph.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
RECIPES = sorted((ROOT / "docs" / "exporters").glob("*.py"))


def strings(folder):
    """Every string that the code of a folder spells out, parts of f-strings included."""
    for path in sorted(folder.rglob("*.py")):
        if path != Path(__file__):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_every_message_of_the_error_page_is_expected_by_a_test():
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    expected = list(strings(ROOT / "tests"))
    assert len(rows) > 40
    unexpected = [row for row in rows if not any(row in text or (text in row and len(text) > 11) for text in expected)]
    assert unexpected == []


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_option_in_the_docs_exists(page):
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("qgraph ")]
    for line in lines:
        _, name, *words = shlex.split(line)
        assert name in COMMANDS, line
        command = cli.get_command(click.Context(cli), name)
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {w for w in words if w.startswith("-")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_in_the_docs_parses(page):
    for block in blocks(page, "python"):
        if not block.startswith("--8<--"):
            ast.parse(block)


def test_every_recipe_is_shown_and_parses():
    shown = set(re.findall(r'--8<-- "(\S+)"', (ROOT / "docs" / "exporters.md").read_text(encoding="utf-8")))
    assert shown == {f"exporters/{path.name}" for path in RECIPES}
    for path in RECIPES:
        ast.parse(path.read_text(encoding="utf-8"))
