"""plan -> plan: more bits for the rows of tables that samples look up often (`qmath.lookup_bits`).

A table has a row for every word, and a text reads some of them in every line and most of them never. Rows that are read
often take up to 7 bits, on a grid of their own; the file grows by less than a sixteenth of the table at 4 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import qmath
from qgraph.graph.layers import TABLE_OP, Layer
from qgraph.graph.sites import GraphView
from qgraph.plan.grids import regridded
from qgraph.plan.plan import MAX_SHIFTED_BITS, LayerQuant, QuantPlan
from qgraph.running.sessions import Session
from qgraph.samples.dataset import Dataset

_BATCH = 32


def with_bits_by_lookups(plan: QuantPlan, view: GraphView, data: Dataset, *, threads: int | None = None) -> QuantPlan:
    """The plan with bits for every row of tables below 7 bits; methods that clip weights come afterwards.

    Tables that other layers read too keep one width.
    """
    tables = {quant.name: view.by_name[quant.name] for quant in plan.layers if _takes_widths(quant, view)}
    counts = lookups(view, list(tables.values()), data, threads=threads) if tables else {}

    def change(quant: LayerQuant) -> LayerQuant:
        read = counts.get(quant.name)
        if read is None or not read.any():
            return quant
        widths = qmath.lookup_bits(read, bits=quant.weight.bits, max_bits=MAX_SHIFTED_BITS)
        if (widths == quant.weight.bits).all():
            return quant
        weight = tables[quant.name].weight_array()
        grid = dataclasses.replace(quant.weight, granularity=qmath.Granularity(axis=0), unit=())
        low, high = weight.min(axis=1), weight.max(axis=1)
        grid = regridded(grid, low, high, channel_bits=tuple(widths.tolist()))
        return dataclasses.replace(quant, weight=grid)

    return plan.map_layers(change)


def lookups(
    view: GraphView, tables: Sequence[Layer], data: Dataset, *, threads: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """How often the samples read each row of the tables, by the names of the layers."""
    inputs = {value.name for value in view.model.graph.inputs}
    computed = list(dict.fromkeys(str(t.input.name) for t in tables if t.input.name not in inputs))
    session = Session(view.model.ir_model, outputs=computed, threads=threads) if computed else None
    found = {table.name: np.zeros(len(table.weight_array()), np.int64) for table in tables}
    for batch in data.batches(_BATCH):
        values = dict(batch.feeds) if session is None else {**batch.feeds, **session.run(batch.feeds)}
        for table in tables:
            rows = found[table.name]
            places = np.asarray(values[str(table.input.name)], np.int64).reshape(-1) % len(rows)
            rows += np.bincount(places, minlength=len(rows))
    return found


def _takes_widths(quant: LayerQuant, view: GraphView) -> bool:
    layer = view.by_name[quant.name]
    return (
        quant.op == TABLE_OP
        and quant.weight.bits < MAX_SHIFTED_BITS
        and layer.owns_weight
        and not quant.weight.symmetric
    )
