"""Networks with a state, run as they are used: a stream of samples in which each run gets the state of the run before.

`python -m benchmarks.streaming FLOAT.onnx SMALL.onnx SAMPLES.npz STATES [RUNS]`: both networks hear the same
samples (`benchmarks.real_steps prepare`), over and over for RUNS runs, and each feeds its own state back: errors
may add up. STATES is JSON, from inputs to the outputs that become them: {"state": "stateN"}. Prints JSON: decibels by
output and by state, and the share of runs in which a single number is on the same side of 1/2.
"""

from __future__ import annotations

import json
import sys
from itertools import cycle, islice

import numpy as np

from benchmarks.real_steps import Output, _session, samples

RUNS = 1875
"""A minute of windows of 32 ms."""


def stream(original: str, small: str, data: str, states: str, runs: str = str(RUNS)) -> dict[str, object]:
    """What the outputs of two files are worth beside each other at the end of a stream."""
    fed_back = json.loads(states)
    sessions = _session(original), _session(small)
    names = [output.name for output in sessions[0].get_outputs()]
    outputs = {name: Output(False) for name in names}
    feeds = list(samples(data))
    now = [{name: np.zeros_like(feeds[0][name]) for name in fed_back} for _ in sessions]
    agreed = decided = 0
    for feed in islice(cycle(feeds), int(runs)):
        both = [session.run(names, {**feed, **state}) for session, state in zip(sessions, now, strict=True)]
        now = [{name: run[names.index(output)] for name, output in fed_back.items()} for run in both]
        for name, want, have in zip(names, *both, strict=True):
            outputs[name].take(want, have)
            if want.size == 1:
                decided, agreed = decided + 1, agreed + int((want > 0.5).all() == (have > 0.5).all())
    return {
        "outputs": {n: output.db for n, output in outputs.items() if n not in fed_back.values()},
        "states": {n: output.db for n, output in outputs.items() if n in fed_back.values()},
        "same decision": 100 * agreed / decided if decided else None,
    }


if __name__ == "__main__":
    print(json.dumps(stream(*sys.argv[1:])))
