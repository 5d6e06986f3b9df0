"""How much is imported before anything is done: what nobody uses nobody waits for. Counted, not timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qgraph.cli import COMMANDS

PROBE = """
import atexit, json, sys
from pathlib import Path

def write():
    Path("modules.json").write_text(json.dumps(sorted(sys.modules)))

atexit.register(write)
"""
MAIN = PROBE + "from qgraph.cli import main\nsys.exit(main(sys.argv[1:]))"
BEFORE_READING = PROBE + "import qgraph.jobs.quantize"
PACKAGES = ("numpy", "scipy", "numba", "onnx", "onnx_ir", "onnxruntime", "sympy", "bayes_opt", "sklearn", "rich", "PIL")
PACKAGES += ("dask", "distributed", "google", "threadpoolctl", "llvmlite")


def imported(folder, script, *arguments, status=0, **environment):
    """The modules that a process imported."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return set(json.loads((folder / "modules.json").read_text()))


def completing(words):
    return {"_QGRAPH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}


@pytest.mark.parametrize(
    ("arguments", "status", "environment"),
    [
        (["--help"], 0, {}),
        *([[name, "--help"], 0, {}] for name in COMMANDS),
        (["--version"], 0, {}),
        ([], 0, completing("qgraph qua")),
        ([], 0, completing("qgraph quantize model.onnx --we")),
        ([], 0, completing("qgraph quantize model.onnx --method ac")),
        (["quantise"], 2, {}),
        (["quantize", "model.onnx"], 2, {}),
        (["quantize", "model.onnx", "-o", "out.onnx", "--weights", "9"], 2, {}),
        (["compare", "model.onnx"], 2, {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_completion_and_wrong_usage_import_click_alone(tmp_path, arguments, status, environment):
    found = imported(tmp_path, MAIN, *arguments, status=status, **environment)
    assert not {name.partition(".")[0] for name in found} & set(PACKAGES)
    assert len(found) < 260


def test_engines_wait_for_their_use(tmp_path):
    """Until `quantize` reads its model, neither SciPy nor Numba, and of onnx-ir not what computes symbolic sizes."""
    found = imported(tmp_path, BEFORE_READING)
    tops = {name.partition(".")[0] for name in found}
    assert {"numpy", "onnx", "onnx_ir", "onnxruntime"} <= tops
    assert not tops & {"scipy", "numba", "sympy", "bayes_opt", "sklearn", "rich", "dask", "distributed", "PIL"}
    assert "onnx_ir._symbolic_shapes" not in found
    assert len(found) < 620


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qgraph quantize mo", ["file,mo"]),
        ("qgraph quantize model.onnx --data x", ["file,x"]),
        ("qgraph quantize model.onnx --clip m", ["plain,max", "plain,mse"]),
        ("qgraph quantize model.onnx --method ac", ["plain,aciq"]),
        ("qgraph quantize model.onnx --recipe sm", ["plain,smallest"]),
        ("qgraph whatif model.onnx pl", ["file,pl"]),
        ("qgraph quantize model.onnx --plan pl", ["file,pl"]),
        ("qgraph quantize model.onnx --resume di", ["dir,di"]),
        ("qgraph quantize model.onnx --weights mi", ["plain,mixed"]),
        ("qgraph sensitivity model.onnx --weight-clip k", ["plain,kl"]),
        ("qgraph quantize model.onnx --clip = m", ["plain,max", "plain,mse"]),  # as bash splits --clip=m
        ("qgraph quantize model.onnx --method =", ["plain,minmax", "plain,aciq", "plain,lsqplus", "plain,qrater"]),
        ("qgraph quantize model.onnx --report = r", ["file,r"]),
    ],
)
def test_shells_complete_paths_and_values(words, offered):
    command = [sys.executable, "-m", "qgraph"]
    done = subprocess.run(command, env={**os.environ, **completing(words)}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[: len(offered)] == offered
    assert done.stdout
