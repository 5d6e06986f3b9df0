"""Plans that are fast enough, by the latency that is foretold for them (`qgraph.assess.foretold`)."""

from __future__ import annotations

import dataclasses
import re
import warnings
from dataclasses import dataclass

from qgraph.assess.foretold import Foreteller, Foretold
from qgraph.errors import ModelError, QGraphError, QualityWarning, UsageError
from qgraph.graph.sites import GraphView
from qgraph.onnxfile.model import Model
from qgraph.onnxfile.noise import TRIED_SIZES, noise
from qgraph.plan.plan import QuantPlan
from qgraph.running.wording import option
from qgraph.samples.dataset import Dataset

_DOUBT = 1.75  # what is foretold of small networks has been this much too long
_TARGET = re.compile(r"([0-9.]+(?:e-?\d+)?)\s*(ms|%)?")


@dataclass(frozen=True, slots=True)
class TargetLatency:
    """The latency that a file may have, on one thread: relative to the float model's, or in seconds."""

    ratio: float | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: float | str) -> TargetLatency:
        """`0.6` and `60%` are relative to the float model, `5ms` is not; raises `UsageError` for anything else."""
        found = _TARGET.fullmatch(str(text).strip())
        try:
            amount = float(found[1]) if found else 0.0
        except ValueError:
            amount = 0.0
        if not found or not 0 < amount < float("inf"):
            raise UsageError(
                f"{option('target_latency')} is a ratio to the float model, such as 0.6, or 5ms, not '{text}'"
            )
        if found[2] == "ms":
            return cls(seconds=amount / 1e3)
        return cls(ratio=amount / 100 if found[2] == "%" else amount)

    def holds(self, found: Foretold) -> bool:
        """Whether a latency is within the target."""
        return found.seconds <= self.seconds if self.seconds is not None else found.ratio <= (self.ratio or 0.0)

    def __str__(self) -> str:
        return f"{1e3 * self.seconds:.3g} ms" if self.seconds is not None else f"{self.ratio:.3g} of the float model's"


def foreteller(net: Model, samples: Dataset | None) -> Foreteller:
    """Foretells plans of a model on one sample, or on noise; raises `ModelError` if the model runs on neither."""
    view = GraphView(net)
    if samples is not None:
        return Foreteller(view, next(iter(samples.batches(1))).feeds)
    for size in TRIED_SIZES:
        try:
            return Foreteller(view, noise(net, size, samples=1))
        except ModelError:
            continue
    raise ModelError(f"{net.source} does not run on noise: give {option('data')}")


def without_slow_layers(plan: QuantPlan, foretell: Foreteller) -> QuantPlan:
    """The plan with layers in floats whose integer kernels are slower, the slowest first, while that saves time.

    Grids that nothing reads on integers any more are left out. Layers whose weights have factors stay: an operand
    that is divided by them has no other reader.
    """
    best = foretell(plan)
    tied = {quant.name for quant in plan.layers if quant.weight.input_scale}
    slow = sorted(
        (x for x in best.layers if x.runs != "floats" and x.seconds > x.float_seconds and x.name not in tied),
        key=lambda x: x.float_seconds - x.seconds,
    )
    for layer in slow:
        other = _in_floats(plan, layer.name, foretell)
        found = foretell(other)
        if found.seconds < best.seconds:
            plan, best = other, found
    return plan


def with_note(faster: QuantPlan, plan: QuantPlan) -> QuantPlan:
    """A plan that `without_slow_layers` made of another, with a note that says so."""
    left = sum(a.runs != b.runs for a, b in zip(plan.layers, faster.layers, strict=True))
    note = f"{left} layers run in floats: their integer kernels are slower on this machine"
    return dataclasses.replace(faster, notes=(*faster.notes, note))


def within(target: TargetLatency, plan: QuantPlan, foretell: Foreteller) -> QuantPlan:
    """The plan, or its version without slow layers, that meets the target.

    If neither does, a warning says what is foretold; beyond doubt, a `QGraphError` that names the longest layers.
    """
    if target.holds(foretell(plan)):
        return plan
    faster = without_slow_layers(plan, foretell)
    found = foretell(faster)
    if target.holds(found):
        return with_note(faster, plan)
    if target.holds(dataclasses.replace(found, seconds=found.seconds / _DOUBT)):
        warnings.warn(
            f"{found.ratio:.2f} of the float model's time is foretold, more than {target}; the file may be faster",
            QualityWarning,
            stacklevel=4,
        )
        return faster
    longest = sorted(found.layers, key=lambda x: -x.seconds)[:3]
    named = ", ".join(f"'{x.name}' {1e3 * x.seconds:.2g} ms" for x in longest)
    share = (
        f", most of it for {named}" if named else "; nothing is foretold to become faster in bodies of Loop and Scan"
    )
    raise QGraphError(
        f"no plan with these options takes at most {target}: {found.ratio:.2f} of the float model's "
        f"{1e3 * found.float_seconds:.3g} ms are foretold{share}; allow more with "
        f"{option('target_latency')}"
    )


def _in_floats(plan: QuantPlan, name: str, foretell: Foreteller) -> QuantPlan:
    changed = plan.map_layers(lambda q: dataclasses.replace(q, runs="floats") if q.name == name else q)
    idle = foretell.idle(changed)
    kept = tuple(a for a in changed.activations if a.tensor not in idle)
    return dataclasses.replace(changed, activations=kept)
