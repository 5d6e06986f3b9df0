"""Few bits without labels, beside onnxsim: its GPTQ and its BRECQ on the same samples, judged on the same images.

`python -m benchmarks.bits4_peers [--model NAME ...] [--setting W4A8 ...] [--images N] [--real FOLDER] [--again]`:
networks and samples are those of `benchmarks.bits4`, and W4 is of weights alone. Every row is kept as it is measured in
benchmarks/results/bits4_peers.json, and measured only once: a run that was stopped goes on where it was. Without a
choice of networks, nothing is measured and the table is printed.

`qgraph` is `qgraph.quantize` by default, without the guard, which would keep layers in more bits; first and last layers
have 8 bits. In `all layers`, these have 4 bits too, as in the files of onnxsim. Its networks are simplified first, as
its pages recommend, and of opset 21, which its 4-bit weights need. `GPTQ` at W4A8 is `gptq_int8(bits=4,
per_channel=True)` on its static QDQ file; that of weights alone, and BRECQ, are `apply_gptq` and `apply_brecq` on
`quantize_weight_only_int4`, in groups of 32, BRECQ on the blocks that onnxsim finds, 1,000 steps each.

`4-bit layers` counts the convolutions and products whose weights have 4 bits. A `note` says that a tool refuses a
setting or fails, or how many layers it rounded anew: others keep their nearest codes, or more bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import version_converter

import qgraph
from benchmarks.bits4 import NETWORKS, SETTINGS, Case, bits_of, case_options, chosen_cases, kept
from benchmarks.common import CIFAR, arguments, keep, report
from qgraph.assess.evaluate import evaluate
from qgraph.onnxfile.load import load
from qgraph.onnxfile.write import serialised
from qgraph.samples.dataset import open_data

RESULTS = Path(__file__).parent / "results" / "bits4_peers.json"
TITLE = "Few bits without labels, beside onnxsim"
ALONE = "W4"
STEPS = 1000
OPSET = 21
BATCH = 32
LAYERS = ("Conv", "Gemm", "MatMul")
Row = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A written network, how many layers have weights of up to 4 bits, of how many, and what else its tool says."""

    content: bytes
    narrow: int
    layers: int
    note: str = ""


Maker = Callable[[Case, str], Made]
MAKERS: dict[str, tuple[tuple[str, ...], Maker]] = {}


def maker(tool: str, *settings: str) -> Callable[[Maker], Maker]:
    """Register what quantizes a case by `tool` at these settings."""

    def register(job: Maker) -> Maker:
        MAKERS[tool] = settings, job
        return job

    return register


def _ours(case: Case, setting: str, **options: Any) -> Made:
    widths = {"weights": 4, "activations": None} if setting == ALONE else bits_of(setting)
    options = {"preprocessing": CIFAR, "measure": False, "guard": "off", **widths, **options}
    made = qgraph.quantize(case.model, case.calibration, **options)
    bits = [layer.weight.bits for layer in made.plan.layers if layer.weight]
    return Made(serialised(made.model), sum(width <= 4 for width in bits), len(bits))


@maker("qgraph", ALONE, *SETTINGS)
def ours(case: Case, setting: str) -> Made:
    return _ours(case, setting)


@maker("qgraph, all layers", ALONE, "W4A8")
def ours_everywhere(case: Case, setting: str) -> Made:
    return _ours(case, setting, edge_bits="same")


@maker("onnxsim GPTQ", *SETTINGS)
def static_gptq(case: Case, setting: str) -> Made:
    """GPTQ of convolutions and matrices on a static QDQ file, whose codes it keeps in int8."""
    simple, batches = _for_onnxsim(case)
    from onnxsim.full_qdq import quantize_full_qdq
    from onnxsim.quark_weight_rounding import gptq_int8

    bits = bits_of(setting)
    static = quantize_full_qdq(simple, calibration_data=batches, activation_dtype=f"uint{bits['activations']}")
    made, rounded = gptq_int8(simple, static, batches, bits=bits["weights"], per_channel=True)
    narrow = len(rounded) if bits["weights"] <= 4 else 0
    return Made(made.SerializeToString(), narrow, _layers(simple), _said(len(rounded)))


@maker("onnxsim GPTQ, weights alone", ALONE)
def alone_gptq(case: Case, setting: str) -> Made:
    simple, batches = _for_onnxsim(case)
    import onnxsim

    nearest = onnxsim.quantize_weight_only_int4(simple)
    return _rewritten(nearest, onnxsim.apply_gptq(simple, nearest, calibration_data=batches))


@maker("onnxsim BRECQ, weights alone", ALONE)
def alone_brecq(case: Case, setting: str) -> Made:
    simple, batches = _for_onnxsim(case)
    import onnxsim
    from onnxsim.qat import discover_qat_blocks

    nearest = onnxsim.quantize_weight_only_int4(simple)
    blocks = [(block.input_name, block.output_name) for block in discover_qat_blocks(simple, nearest)]
    return _rewritten(
        nearest, onnxsim.apply_brecq(simple, nearest, blocks, calibration_data=batches, num_iterations=STEPS)
    )


def _for_onnxsim(case: Case) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """The network as onnxsim's quantizers read it, and the samples in batches."""
    try:
        import onnxsim
    except ImportError:
        sys.exit("this benchmark needs onnxsim: pip install onnxsim==0.8.1")
    data = open_data(case.calibration, load(case.model), preprocessing=CIFAR)
    simple, _ = onnxsim.simplify(onnx.load(case.model))
    return version_converter.convert_version(simple, OPSET), [dict(batch.feeds) for batch in data.batches(BATCH)]


def _rewritten(before: onnx.ModelProto, after: onnx.ModelProto) -> Made:
    """The second of two files with packed weights, and how many of its constants are others."""
    known = {tensor.name: tensor for tensor in before.graph.initializer}
    narrow = sum(tensor.data_type == onnx.TensorProto.INT4 for tensor in known.values())
    count = sum(tensor != known.get(tensor.name) for tensor in after.graph.initializer)
    return Made(after.SerializeToString(), narrow, _layers(before), _said(count))


def _layers(model: onnx.ModelProto) -> int:
    return sum(node.op_type in LAYERS for node in model.graph.node)


def _said(count: int) -> str:
    return f"{count} layer{'s' * (count != 1)} rounded"


def measured(case: Case, setting: str, tool: str, threads: int = 0) -> Row:
    """One row; a tool that refuses or fails, or whose file does not load, leaves a word and no figures."""
    row: Row = {"network": case.name, "setting": setting, "tool": tool, "images": len(case.test["labels"])}
    figures: Row = {"4-bit layers": "-", "drop": None, "dB": None, "bytes": None, "CPU s": None}
    problem = "fails"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.onnx"
        try:
            started = time.process_time()
            made = MAKERS[tool][1](case, setting)
            seconds = time.process_time() - started
            path.write_bytes(made.content)
            problem = "does not load"
            ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:
            print(f"{case.name} {setting} {tool}: {error}", file=sys.stderr)
            refused = problem == "fails" and isinstance(error, (NotImplementedError, ValueError))
            return {**row, **figures, "note": "refuses" if refused else problem}
        found = evaluate(path, case.test, preprocessing=CIFAR, against=case.model, threads=threads or None)
    figures["4-bit layers"] = f"{made.narrow} of {made.layers}"
    figures |= {
        "drop": (found.against_top1 or 0.0) - (found.top1 or 0.0),
        "dB": found.sqnr_db,
        "bytes": len(made.content),
        "CPU s": seconds,
    }
    return {**row, **figures, "note": made.note}


def jobs(case: Case, settings: Sequence[str], known: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """The settings and tools of a case that the rows `known` do not have yet for as many images."""
    images = len(case.test["labels"])
    done = {(row["setting"], row["tool"]) for row in known if (row["network"], row["images"]) == (case.name, images)}
    for setting in settings:
        yield from (
            (setting, tool) for tool, (able, _) in MAKERS.items() if setting in able if (setting, tool) not in done
        )


def merged(known: Sequence[Row], row: Row) -> list[Row]:
    """The rows with this one, in the order of networks, settings and tools, in place of an older one of its case."""

    def place(row: Row) -> tuple[int, ...]:
        network = (*NETWORKS, "mobilenetv2").index(row["network"])
        return network, (ALONE, *SETTINGS).index(row["setting"]), list(MAKERS).index(row["tool"])

    return sorted([*(other for other in known if place(other) != place(row)), row], key=place)


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        case_options(parser)
        parser.add_argument("--setting", choices=(ALONE, *SETTINGS), action="append", help="default: all")
        parser.add_argument("--again", action="store_true", help="measure again what the results already have")

    given = arguments(__doc__, options)
    path = Path(given.json) if given.json else RESULTS
    for case in chosen_cases(given):
        for setting, tool in jobs(case, given.setting or (ALONE, *SETTINGS), [] if given.again else kept(path)):
            row = measured(case, setting, tool, given.threads)
            report(TITLE, [row])
            keep(TITLE, merged(kept(path), row), path)
    if rows := kept(path):
        report(TITLE, rows)


if __name__ == "__main__":
    main()
