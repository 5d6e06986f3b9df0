"""The benchmarks are no installed package: they are found beside the tests, after everything that is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
