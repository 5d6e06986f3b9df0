"""Quantize mutants in a process of its own: `python mutant_worker.py FIRST LAST`.

It prints two lines of JSON for each, before and after. The timer that ends a hang kills the process, as a crash of
native code would; whoever started it sees which seed was the last to begin.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

from mutants import Mutant, write_mutant

import qgraph
from qgraph.errors import QGraphError

HANG = 10  # seconds of computing
ASLEEP = 120  # seconds on the clock, of a machine that may be busy with other things
opened: list[str] = []


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        opened.append(str(arguments[0]))


def outcome(mutant: Mutant, seed: int) -> str:
    """quantized, refused, or what went wrong."""
    path, folder = mutant.path, mutant.path.parent
    before = {p.name for p in folder.iterdir()}
    opened.clear()
    how = {"data": [mutant.feeds]} if seed % 2 else {"activations": None}
    try:
        qgraph.quantize(path, method="minmax", threads=1, **how).save(folder / "out.onnx")
        result = "quantized"
    except QGraphError as error:
        result = "refused" if len(str(error)) > 20 else "refused without a reason"
    except Exception as error:
        result = f"escaped: {type(error).__name__}: {str(error)[:200]}"
    if any("secret" in name or "passwd" in name for name in opened):
        return "read outside of the folder"
    left = {p.name for p in folder.iterdir()} - before
    expected = {"out.onnx"} if result == "quantized" else set()
    return result if left == expected else f"left {sorted(left)} behind"


def main(first: int, last: int) -> None:
    warnings.simplefilter("ignore")
    sys.addaudithook(watch)
    for seed in range(first, last):
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / "model"
            inside.mkdir()
            mutant = write_mutant(seed, inside)
            print(json.dumps({"seed": seed, "kind": mutant.kind}), flush=True)
            before = memory()
            start = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, HANG)
            signal.alarm(ASLEEP)
            found = outcome(mutant, seed)
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
        row = {"seed": seed, "kind": mutant.kind, "outcome": found, "seconds": time.process_time() - start}
        print(json.dumps(row | {"growth": memory() - before}), flush=True)


def memory() -> int:
    """The most bytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
