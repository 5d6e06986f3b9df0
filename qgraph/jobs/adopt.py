"""Take over a file that another tool has quantized, and write it in the form that onnxruntime runs fast."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import onnx_ir as ir

from qgraph.assess.verdict import Verdict
from qgraph.assess.verify import verify
from qgraph.errors import ModelError
from qgraph.graph.sites import GraphView
from qgraph.jobs.below import expected_db, warn_below
from qgraph.jobs.trial import Trial
from qgraph.lowering.adopted import AdoptedLayer, adopted_plan
from qgraph.lowering.lift import Lifted, lift
from qgraph.lowering.lower import lower
from qgraph.observe.statistics import observe
from qgraph.onnxfile.load import check_model, load
from qgraph.onnxfile.model import Model, ModelLike
from qgraph.onnxfile.normalise import normalise
from qgraph.onnxfile.opset import raise_opset
from qgraph.onnxfile.write import save
from qgraph.plan.blocks import BLOCK_OPSET
from qgraph.plan.plan import QuantPlan
from qgraph.plan.saturation import largest_pair, saturated
from qgraph.plan.words import TargetCpu
from qgraph.running.progress import SILENT, Progress
from qgraph.running.threads import keeps_threads
from qgraph.samples.dataset import DataLike, Reading, open_data
from qgraph.samples.split import hold_out


@dataclass(frozen=True, eq=False, kw_only=True)
class Adopted:
    """The rewritten model with its plan, the file it was made from, its float network, and what became of every layer.

    `quality` compares it with the float model if one was given, else with the file that was adopted. So many layers are
    `saturating`: pairs of their products can leave 16 bits on x86-64 without VNNI.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> theirs = qgraph.quantize(files("qgraph") / "demo_assets" / "digits.onnx", activations=None, measure=False)
        >>> adopted = qgraph.adopt(theirs.model, measure=False)
        >>> qgraph.apply(adopted.net, adopted.plan, measure=False).digest == adopted.net.digest
        True
    """

    model: ir.Model
    given: Model
    net: Model
    plan: QuantPlan
    layers: tuple[AdoptedLayer, ...]
    saturating: int = 0
    quality: Verdict | None = None

    @property
    def kept(self) -> int:
        """How many layers keep every code of their weight."""
        return sum(not layer.moved for layer in self.layers)

    def save(self, path: str) -> int:
        """Write the model; returns its size in bytes."""
        return save(self.model, path, source=self.given.source)

    def to_dict(self) -> dict[str, Any]:
        """The value of `--json`."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "kept": self.kept,
            "saturating": self.saturating,
            "quality": None if self.quality is None else self.quality.to_dict(),
        }


_ADVICE = "the grids are those of the file: qgraph quantize finds new ones for the float model"


@keeps_threads
def adopt(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    float_model: ModelLike | None = None,
    target_cpu: TargetCpu = "vnni",
    measure: bool = True,
    threads: int | None = None,
    progress: Progress = SILENT,
    **reading: Unpack[Reading],
) -> Adopted:
    """Rewrite a quantized file so that it computes the same on integer kernels.

    The grids of the file become a plan, and the plan a file: activations in uint8 with the zero point at the lowest
    code, weights in as many bits as they have, biases in the kernels' own steps, and no tensor in floats between two
    kernels. Codes of weights stay as they are wherever a kernel can take them.

    Args:
        model: a file with QuantizeLinear and DequantizeLinear, integer operators, dynamic quantization, or blocks of
            4-bit weights.
        data: samples; they give ranges to tensors that the file left in floats, and judge the result.
        float_model: the model that the file was made from, to judge the result by.
        target_cpu: "vnni" keeps the codes of weights; "any" moves those that could saturate on other CPUs.
        measure: compare the result in onnxruntime (`Adopted.quality`).
        preprocessing, limit, batch, shapes, batch_axes, threads, progress: as in `quantize`.

    Raises:
        ModelError: the model is not quantized, or nothing of it can be read.

    Example:
        >>> from importlib.resources import files
        >>> import qgraph
        >>> demo = files("qgraph") / "demo_assets"
        >>> theirs = qgraph.quantize(demo / "digits.onnx", demo / "digits_calibration.npz", limit=16, measure=False)
        >>> adopted = qgraph.adopt(theirs.model, measure=False)
        >>> adopted.kept == len(adopted.layers)
        True
    """
    loaded, lifted = _read(model)
    net = normalise(lifted.model)
    raised = _at_opset(net, blocks=any(weight.grid.block for weight in lifted.weights.values()))
    view = GraphView(raised)
    samples = None if data is None else open_data(data, raised, **reading)
    observed = None
    if samples is not None:
        observed = observe(raised, samples, histograms=False, threads=threads, progress=progress)
    plan, layers = adopted_plan(view, lifted, observed=observed, target_cpu=target_cpu)
    lowered = lower(raised, plan, format="qdq")
    quality = None
    if measure:
        reference = loaded if float_model is None else load(float_model)
        held = None if samples is None else hold_out(samples).held_out
        trial = Trial(reference=reference, samples=held, basis="given", progress=progress)
        quality = trial.judge(lowered, threads=threads)
        if float_model is None and quality.basis == "none":
            inside = dataclasses.replace(trial, reference=dataclasses.replace(net, nbytes=loaded.nbytes))
            quality = _instead(quality, inside.judge(lowered, threads=threads), loaded.source)
    if quality is None or quality.notes:
        verify(lowered, raised, samples)
    else:
        warn_below(quality, expected_db(plan), advice=_ADVICE)
    return Adopted(
        model=lowered,
        given=loaded,
        net=net,
        plan=plan,
        layers=layers,
        saturating=_saturating(view, plan),
        quality=quality,
    )


def _saturating(view: GraphView, plan: QuantPlan) -> int:
    """How many layers have codes whose products, added in pairs, can leave 16 bits."""
    found = ((view.by_name[quant.name], quant) for quant in plan.layers if quant.runs != "floats")
    limits = ((layer, quant.weight, largest_pair(layer, quant, plan.operand_grids)) for layer, quant in found)
    return sum(bool(saturated(layer, grid, limit).any()) for layer, grid, limit in limits if limit)


def _read(model: ModelLike) -> tuple[Model, Lifted]:
    """The file and what is in it. One that ONNX's checker refuses may be mended by lifting its grids."""
    try:
        loaded = load(model)
    except ModelError as refusal:
        try:
            loaded = load(model, checker=False)
            lifted = lift(loaded)
            check_model(lifted.model)
        except Exception:  # of any kind, in a graph that nothing has checked
            raise refusal from None
        return loaded, lifted
    return loaded, lift(loaded)


def _at_opset(net: Model, *, blocks: bool) -> Model:
    """The network at the opset that its file needs; that of blocks of codes only if it gets there."""
    if blocks:
        try:
            return raise_opset(net, max(net.opset, BLOCK_OPSET))
        except ModelError:
            pass
    return raise_opset(net)


def _instead(quality: Verdict, inside: Verdict, source: str) -> Verdict:
    """The verdict beside the float network inside a file, where the file itself does not run."""
    if inside.basis == "none":
        return quality
    warnings.warn(f"{source} does not run in onnxruntime: compared with the float network inside it", stacklevel=3)
    return inside
