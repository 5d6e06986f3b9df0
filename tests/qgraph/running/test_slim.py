"""onnx-ir without SymPy, until a symbolic size is computed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, types
import qgraph, onnx_ir as ir
assert "sympy" not in sys.modules
size = ir.SymbolicDim("N")
assert size == ir.SymbolicDim("N") and "sympy" not in sys.modules
assert (size * 2).evaluate({"N": 3}) == 6
import sympy
assert type(sympy) is types.ModuleType and sympy.Integer(2) == 2
assert type(sys.modules["onnx_ir._symbolic_shapes"]) is types.ModuleType
"""


def test_symbolic_sizes_import_sympy_when_they_are_computed():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
