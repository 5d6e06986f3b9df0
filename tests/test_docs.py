"""The pages in docs/ against the product: messages that are produced, options that exist, code that parses."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

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


def hook(name):
    """A hook of MkDocs, loaded as MkDocs loads it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_is_complete():
    """Every command with its help, its examples and its options, in the page that has the marker."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    made = hook("command_line").on_page_markdown(page)
    sections = dict(
        zip(re.findall(r"^## ([\w-]+)$", made, re.MULTILINE), re.split(r"^## .*$", made, flags=re.M)[1:], strict=True)
    )
    assert list(sections) == list(COMMANDS)
    for name, section in sections.items():
        command = cli.get_command(click.Context(cli), name)
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        assert all(o in section for p in options for o in (*p.opts, *p.secondary_opts)), name
        examples = re.findall(r"^ *(qgraph .*)$", command.help or "", re.MULTILINE)
        assert all(example.split("\\")[0].strip() in section for example in examples), name
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert len(rows) == len(options), name


def documented():
    """The dotted names that the pages take from docstrings."""
    return {
        name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("package", ["qgraph", "qgraph.gradient", "qmath"])
def test_every_public_name_is_documented(package):
    module, pages = importlib.import_module(package), documented()
    missing = []
    for name in module.__all__:
        home = getattr(getattr(module, name), "__module__", None)
        named = any(page.startswith(f"{package}.") and page.endswith(f".{name}") for page in pages)
        if not named and home not in pages:
            missing.append(name)
    assert missing == []


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason='needs the extra: pip install ".[docs]"')
    content = (
        '<p>so <span class="arithmatex">\\(x &lt; \\alpha\\)</span></p><div class="arithmatex">\\[\\frac{1}{2}\\]</div>'
    )
    made = hook("formulas").on_page_content(content)
    assert made.count("<math") == 2
    assert "<mfrac>" in made
    assert "arithmatex" not in made


def test_links_to_notebooks_lead_to_their_pages():
    pytest.importorskip("mkdocs", reason='needs the extra: pip install ".[docs]"')
    made = hook("notebooks").on_page_markdown(
        "[a](../notebooks/pareto.ipynb), [b](../../notebooks/whatif.ipynb#x), `../notebooks`"
    )
    assert made == "[a](notebooks/pareto.md), [b](../notebooks/whatif.md#x), `../notebooks`"


def test_every_notebook_becomes_a_page_with_its_pictures():
    pytest.importorskip("mkdocs", reason='needs the extra: pip install ".[docs]"')
    pages = hook("notebooks").pages()
    assert [page.name for page in pages] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    for page in pages:
        assert page.title.endswith("?")
        assert len(page.summary) > 80
        assert page.pictures
        assert all(content.startswith(b"\x89PNG") for content in page.pictures.values())
        assert set(re.findall(r"\]\(([\w-]+\.png)\)", page.markdown)) == set(page.pictures)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("the path is wrong", ["no such model file"]),
        ("error: x.onnx: no such model file (see docs)", ["no such model file"]),
        ("NaN", ["has NaN"]),
        ("", ["no such model file", "has NaN"]),
        ("of quite another thing", []),
    ],
)
def test_messages_can_be_searched(tmp_path, asked, shown):
    script = (ROOT / "docs" / "assets" / "filter.js").read_text(encoding="utf-8")
    rows = {"no such model file": "the path is wrong", "has NaN": "some samples have NaN values"}
    tables = "".join(
        f"<h2>{i}</h2><table><tbody><tr><td>{says}</td><td>{why}</td></tr></tbody></table>"
        for i, (says, why) in enumerate(rows.items())
    )
    box = '<input id="message-filter" hidden><span id="message-count"></span>'
    page = tmp_path / "page.html"
    page.write_text(f"<meta charset=utf-8><article>{box}{tables}</article><script>{script}</script>", encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=2000 --dump-dom"
    address = f"{page.as_uri()}#message={quote(asked)}"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'user'}", address]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.findall(r"<tr(?: class=\"\")?><td>(.*?)</td>", dom) == shown
    assert len(re.findall(r'<h2 class="filtered-out">', dom)) == len(rows) - len(shown)
    assert ("hidden" in re.search(r"<input[^>]*>", dom)[0]) is False
