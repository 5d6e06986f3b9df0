"""`qgraph inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from qgraph.cli.console import next_step, show, show_json, table
from qgraph.cli.help import Command
from qgraph.cli.kinds import PATH
from qgraph.cli.log import log_options, verbose
from qgraph.cli.options import threads_option

if TYPE_CHECKING:
    from qgraph.assess.fused import FusedGraph
    from qgraph.assess.portable import Portable
    from qgraph.onnxfile.model import Model


_FORMULA = 24  # characters of the size of an axis that is no name


@click.command(cls=Command, short_help="Show layers, and how they run.")
@click.argument("model", type=PATH)
@click.option("--fused", is_flag=True, help="Show which layers onnxruntime runs on integers, and why not the others.")
@click.option("--portable", is_flag=True, help="Show what is proven to give the same codes on every processor.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
@log_options
def inspect(model: str, fused: bool, portable: bool, threads: int | None, as_json: bool) -> None:
    """Show what is in MODEL: interface, layers, weights; with --fused, how onnxruntime runs it.

    With --portable, the range of every integer sum, whether it can overflow 32 bits, or a pair of products 16 bits, and
    which operators may round differently on another processor. It is a proof from the weights, for every input.

    \b
    Examples:
      qgraph inspect model.onnx
      qgraph inspect small.onnx --fused
      qgraph inspect small.onnx --portable
    """
    from qgraph.assess.fused import inspect_fused
    from qgraph.onnxfile.load import load

    if fused and portable:
        raise click.UsageError("give --fused or --portable, not both")
    net = load(model)
    if portable:
        from qgraph.assess.portable import prove_portable

        _show_portable(model, prove_portable(net, threads=threads), as_json)
    elif fused:
        _show_fused(model, inspect_fused(net, threads=threads), as_json)
    else:
        _show_model(net, as_json)


def _show_model(net: Model, as_json: bool) -> None:
    from qgraph.graph.sites import GraphView
    from qgraph.onnxfile.normalise import normalise
    from qgraph.plan.kept import kept_in_float

    view = GraphView(normalise(net))
    layers = [
        {
            "name": layer.name,
            "op": layer.op,
            "weight": list(layer.weight_array().shape),
            "edge": layer.name in view.edge_layers,
        }
        for layer in view.by_name.values()
    ]
    integer = _quantized_layers(net)
    names = {layer["name"] for layer in integer}
    kept = [
        entry
        for entry in kept_in_float(view, view.skipped | view.unfolded, set(view.by_name), tail=False)
        if entry.name not in names
    ]
    content: dict[str, Any] = {
        "file": net.source,
        "bytes": net.nbytes,
        "opset": net.opset,
        "ir_version": net.ir_model.ir_version,
        "inputs": [_describe(v) for v in net.input_values()],
        "outputs": [_describe(v) for v in net.graph.outputs],
        "operators": dict(Counter(node.op_type for node in net.graph)),
        "layers": layers,
        "quantized": integer,
        "kept_float": [dataclasses.asdict(entry) for entry in kept],
        "unchanged": [dataclasses.asdict(node) for node in view.model.unchanged],
    }
    if as_json:
        show_json(content)
        return
    show(f"{net.source}: {net.nbytes:,} bytes, opset {net.opset}, IR version {net.ir_model.ir_version}")
    for kind in ("inputs", "outputs"):
        for item in content[kind]:
            show(f"  {kind[:-1]} {item['name']}: {item['type']} {_sizes(item['shape'])}")
    show("  operators: " + ", ".join(f"{count} {op}" for op, count in content["operators"].items()))
    if integer:
        _show_quantized(integer)
    title = "float layers" if integer else "quantizable layers"
    rows = table(title, "layer", "op", "weight", "", left=4, heaviest="those of the largest weights")
    for layer in view.by_name.values():
        shape = " x ".join(map(str, layer.weight_array().shape))
        edge = "edge" if layer.name in view.edge_layers else ""
        rows.add_row(layer.name, layer.op, shape, edge, weight=layer.weight_array().nbytes)
    for entry in kept:
        if entry.name in view.skipped or entry.bytes:
            size = f" ({entry.bytes:,} bytes)" if entry.bytes else ""
            rows.add_row(entry.name, "-", "-", f"stays float: {entry.why}{size}", weight=entry.bytes)
    if rows.rows or not integer:
        show(rows)
    if view.model.unchanged and (verbose() or not integer):
        left = table("left as they are", "node", "op", "rewrite", "why not", left=4)
        for node in view.model.unchanged:
            left.add_row(node.name, node.op, node.rewrite, node.why)
        show(left)
    if integer:
        next_step("how onnxruntime runs it", "inspect", str(net.source), "--fused")
    elif layers:
        next_step("make it smaller", "quantize", str(net.source), "-o", "small.onnx")


def _quantized_layers(net: Model) -> list[dict[str, Any]]:
    """The layers whose weights the file holds as codes, with the bits of weight and operand (None: float)."""
    from qgraph.assess.bits_in_file import bits_in_file
    from qgraph.assess.fused import with_names

    named = with_names(net)
    found = bits_in_file(named)
    layers = []
    for node in named.graph:
        weight, operand = found.get(str(node.name), (None, None))
        if weight is not None:
            runs = "integer" if operand is not None else "float"
            layer = {"name": node.name, "op": node.op_type, "weight_bits": weight, "activation_bits": operand}
            layers.append({**layer, "arithmetic": runs})
    return layers


def _show_quantized(layers: list[dict[str, Any]]) -> None:
    rows = table("quantized layers", "layer", "op", "arithmetic", "weights", "activations", left=3)
    for layer in layers:
        operand = "float" if layer["activation_bits"] is None else str(layer["activation_bits"])
        rows.add_row(layer["name"], layer["op"], layer["arithmetic"], str(layer["weight_bits"]), operand)
    show(rows)


def _describe(value: Any) -> dict[str, Any]:
    from qgraph.onnxfile.readable import type_text

    shape = None if value.shape is None else [d if isinstance(d, int) else str(d.value) for d in value.shape]
    return {"name": value.name, "type": type_text(value), "shape": shape}


def _sizes(shape: list[int | str] | None) -> str:
    """A shape, with ? for sizes that are computed from others by a formula longer than a name."""
    if shape is None:
        return "of unknown shape"
    return f"[{', '.join(str(size) if len(str(size)) <= _FORMULA else '?' for size in shape)}]"


def _show_fused(model: str, graph: FusedGraph, as_json: bool) -> None:
    if as_json:
        layers = [
            {"name": r.name, "op": r.op, "kernel": r.kernel, "integer": r.integer, "why": r.why} for r in graph.layers
        ]
        show_json({"layers": layers, "warnings": list(graph.warnings)})
        return
    columns = ("layer", "runs as", "kernel", "why not integer")
    rows = table(f"{model} as onnxruntime runs it", *columns, left=4, heaviest="those in float first")
    for layer in graph.layers:
        runs = "integer" if layer.integer else "float"
        rows.add_row(layer.name, runs, layer.kernel, layer.why, weight=not layer.integer)
    integer = sum(layer.integer for layer in graph.layers)
    show(rows, f"{integer} of {len(graph.layers)} layers run on integers")
    for warning in graph.warnings:
        show(f"warning: {warning}")


def _show_portable(model: str, found: Portable, as_json: bool) -> None:
    if as_json:
        proven = {"proven": found.proven, "sums_fit_32_bits": found.sums_fit, "pairs_fit_16_bits": found.pairs_fit}
        show_json({**proven, **dataclasses.asdict(found)})
        return
    columns = ("layer", "least sum", "greatest sum", "why codes may differ")
    rows = table(f"{model} on every processor", *columns, text=(3,), heaviest="those that may differ first")
    for layer in found.layers:
        ends = ("-", "-") if layer.sums is None else tuple(f"{end:,}" for end in layer.sums)
        rows.add_row(layer.name, *ends, layer.why, weight=bool(layer.why))
    same = sum(not layer.why for layer in found.layers)
    show(rows, f"{same} of {len(found.layers)} layers compute the same codes everywhere from the same operands")
    if found.proven:
        show("proven: every processor computes the same outputs, for every input")
    if found.inexact:
        counted = ", ".join(f"{count} {op}" for op, count in found.inexact.items())
        show(f"may round differently on another processor: {counted}")
