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
SAID = re.compile(r"\berr\b|error|printed|said|message|note|stderr|\bout\b|warn|raised|caught")
RECIPES = sorted((ROOT / "docs" / "exporters").glob("*.py"))


def expectations(path):
    """Every text that a test of the file cannot pass without.

    It stands in `match=` of pytest.raises or warns, or as the left side of `in` in an assertion on what was raised or
    printed. A name there stands for all values that parametrize or a loop gives it.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            given = values(function, tree)
            for sought in (part for node in ast.walk(function) for part in awaited(node)):
                names = {n.id for n in ast.walk(sought) if isinstance(n, ast.Name)}
                for part in (sought, *(value for name in names for value in given.get(name, ()))):
                    yield from (unescaped(c.value) for c in ast.walk(part) if is_text(c))


def awaited(node):
    """What must be found, if the node says so."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.raises", "pytest.warns"):
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "match")
    if isinstance(node, ast.Assert):
        for part in ast.walk(node.test):
            found = isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.In)
            if found and SAID.search(ast.unparse(part.comparators[0])):
                yield part.left


def values(function, tree):
    """By the name of a parameter or loop variable, the nodes of the values that the source gives it."""
    found = {}
    for mark in function.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.parametrize":
            found |= columns(ast.literal_eval(mark.args[0]), mark.args[1], tree)
    for loop in ast.walk(function):
        if isinstance(loop, ast.For) and isinstance(loop.target, ast.Tuple):
            found |= columns([ast.unparse(name) for name in loop.target.elts], loop.iter, tree)
    return found


def columns(names, table, tree):
    """The values of each name in the rows of a table: a literal, or the values of a dictionary."""
    if isinstance(table, ast.Call) and ast.unparse(table).endswith(".values()"):
        named = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
        rows = getattr(named.get(ast.unparse(table.func.value), table.func.value), "values", [])
    else:
        rows = getattr(table, "elts", [])
    if isinstance(names, str):
        return {names: rows}
    return {name: [row.elts[i] for row in rows if hasattr(row, "elts")] for i, name in enumerate(names)}


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def unescaped(pattern):
    return re.sub(r"\\(\W)", r"\1", pattern)


def rows():
    """The words of a message that each row of the error page begins with."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def test_every_message_of_the_error_page_is_expected_by_a_test():
    expected = {text for path in (ROOT / "tests").rglob("test_*.py") for text in expectations(path)}
    assert len(rows()) > 150
    long = {text for text in expected if len(text) > 11}
    unexpected = [row for row in rows() if not any(said(row, t) for t in expected) and not any(t in row for t in long)]
    assert unexpected == []


def said(words, text):
    """Whether the text has the words, which may leave something out."""
    start = 0
    for part in words.split("…"):
        found = text.find(part, start)
        if found < 0:
            return False
        start = found + len(part)
    return True


def messages():
    """Every message that the package raises as an error of its own, with {} for what is filled in."""
    for path in sorted((ROOT / "qgraph").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = ast.unparse(node.exc.func).split(".")[-1]
                if name not in ("ValueError", "TypeError", "AttributeError", "SystemExit"):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(map(template, node.exc.args))


def template(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


def test_every_message_of_the_package_is_on_the_error_page():
    found = dict(messages())
    assert len(found) > 200
    passed_on = {where for where, text in found.items() if not re.search("[a-z]", text)}  # another error's own words
    assert len(passed_on) < 3
    explained = [where for where, text in found.items() if any(said(row, text) for row in rows())]
    assert sorted(set(found) - set(explained) - passed_on) == []


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
