"""What surrounds the code and can go stale: the version, the workflow, the citation, links, install lines."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path

import pytest

from qgraph.version import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def released() -> tuple[str, str]:
    """The newest version in the changelog, and its date."""
    return re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE).groups()


def test_the_version_stands_in_one_place():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    for path in ROOT.glob("q*/**/*.py"):
        literal = re.search(rf"[\"']{re.escape(__version__)}[\"']", path.read_text(encoding="utf-8"))
        assert literal is None or path.name == "version.py", path


def test_the_changelog_and_the_citation_are_of_this_version():
    version, date = released()
    assert version == __version__
    assert datetime.date.fromisoformat(date).year >= 2026
    assert text("CHANGELOG.md").index("## [Unreleased]") < text("CHANGELOG.md").index(f"## [{version}]")
    assert re.search(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE)[1] == version
    assert re.search(r"^date-released: \"(\S+)\"$", text("CITATION.cff"), re.MULTILINE)[1] == date


def test_yaml_files_are_well_formed():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the extra dask brings along")
    paths = [ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *ROOT.glob(".github/**/*.yml")]
    assert len(paths) >= 6
    for path in paths:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(content, dict), path
    for path in ROOT.glob(".github/ISSUE_TEMPLATE/[!c]*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        named = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert len(named) == len(set(named)) > 0


def test_the_workflow_tests_what_the_project_supports():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the extra dask brings along")
    jobs = yaml.safe_load(text(".github", "workflows", "ci.yml"))["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    classified = {c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.fullmatch(r"Programming.*:: 3\.\d+", c)}
    assert set(matrix["python"]) == classified
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    assert matrix["onnxruntime"] == ["oldest", "newest", "pre-release"]
    assert {"docs", "wheel", "checks"} <= set(jobs)
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    for script in re.findall(r"\.ci/\S+", commands):
        assert (ROOT / script).exists(), script
    extras = {extra for found in re.findall(r"\.\[([\w,]+)\]", commands) for extra in found.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])
    pattern = re.search(r"grep -oP '(.*?)'", commands)[1].replace(r"\K", "")
    assert re.search(pattern, text("pyproject.toml"))


def test_install_lines_name_the_distribution():
    """`pip install X` of this project is qgraph-onnx, with extras that exist, or the checkout."""
    lines = []
    for path in [*PAGES, *(ROOT / "qgraph").rglob("*.py"), ROOT / "Dockerfile", *ROOT.glob("notebooks/*.ipynb")]:
        lines += re.findall(r"pip install ((?:[^`\n|&]|\\\")*)", path.read_text(encoding="utf-8"))
    ours = [
        w
        for line in lines
        for w in re.findall(r"(?:qgraph[\w-]*|(?<![\w/.])\.)(?:\[[\w,]+\])?(?=[\s\"'\\,;)]|$)", line)
    ]
    assert len(ours) > 5
    for word in ours:
        assert re.match(r"qgraph-onnx\b|\.", word), word
        for extra in re.findall(r"\[(.*)\]", word):
            assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"]), word


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain))


def anchors(path: Path) -> set[str]:
    return {slug(line.lstrip("# ")) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in LINK.finditer(prose):
        target = found[1] or found[2]
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name}: {target}"
