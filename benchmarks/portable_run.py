"""Run a model in onnxruntime: `python -m benchmarks.portable_run MODEL INPUT.f32 3,32,32 BATCH`, one thread.

Prints, as `portable_run.mjs` does, a digest of each output and the classes of the first. A process of its own, so that
it can be started on another processor, or on one that seems to be another (`older_cpu.c`).
"""

from __future__ import annotations

import hashlib
import json
import sys
import time

import numpy as np
import onnxruntime


def main() -> None:
    model, data, text, batch = sys.argv[1:]
    shape = tuple(map(int, text.split(",")))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    digests = {name: hashlib.sha256() for name in names}
    samples = np.memmap(data, np.float32, "r").reshape(-1, *shape)
    classes, seconds = [], 0.0
    for start in range(0, len(samples), int(batch)):
        begun = time.perf_counter()
        found = session.run(None, {session.get_inputs()[0].name: samples[start : start + int(batch)]})
        seconds += time.perf_counter() - begun
        for name, value in zip(names, found, strict=True):
            digests[name].update(np.ascontiguousarray(value).tobytes())
        classes += found[0].argmax(axis=1).tolist()
    outputs = {name: digest.hexdigest() for name, digest in digests.items()}
    version = onnxruntime.__version__
    print(json.dumps({"outputs": outputs, "classes": classes, "version": version, "milliseconds": 1e3 * seconds}))


if __name__ == "__main__":
    main()
