"""Options that several commands share, with the same meaning everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from qgraph.cli.help import grouped
from qgraph.cli.kinds import FOLDER, PATH, Bits, Group, Named, Names, Numbers, Sizes, Threshold
from qgraph.cli.log import log_options
from qgraph.plan.registry import method_names, training_methods

if TYPE_CHECKING:
    from qgraph.plan.plan import QuantPlan
    from qgraph.samples.preprocessing import Preprocessing

F = TypeVar("F", bound=Callable[..., Any])
_CLIPS = ("max", "percentile", "mse", "kl", "aciq")


class _MethodOption(click.Option):
    """`--method`, which looks up the names of methods only to show them."""

    names = staticmethod(method_names)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0], record[1].replace("NAMES", ", ".join(self.names())))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


class _TrainingMethodOption(_MethodOption):
    """The same for methods that train."""

    names = staticmethod(training_methods)


def method_option(text: str, *, trains: bool = False, default: str | None = None) -> Callable[[F], F]:
    """The option `--method`; in its help text, NAMES stands for the names of all methods, or of those that train."""
    kind = _TrainingMethodOption if trains else _MethodOption
    return click.option("--method", cls=kind, metavar="NAME", default=default, help=text)


def _as_mapping(ctx: click.Context, param: click.Parameter, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
    return dict(pairs) or None


batch_option = click.option(
    "--batch", type=click.IntRange(min=1), metavar="N", help="Batch size of a run, if the model takes no other."
)
shape_option = click.option(
    "--shape",
    "shapes",
    type=Named(Sizes(), "NAME=1,3,320,320"),
    multiple=True,
    callback=_as_mapping,
    help="Shape of an input whose sizes the model leaves open (repeatable).",
)

batch_axis_option = click.option(
    "--batch-axis",
    "batch_axes",
    type=Named(click.INT, "NAME=1"),
    multiple=True,
    callback=_as_mapping,
    help="Axis of an input along which samples run, if it cannot be told from the sizes (repeatable).",
)


normalisation_options = (
    click.option("--mean", type=Numbers(), default=(), help="Mean per channel of images in 0..1 (or one number)."),
    click.option("--std", type=Numbers(), default=(), help="Standard deviation per channel (or one number)."),
)


def data_options(*, required: bool = False, own_batch: bool = False) -> Callable[[F], F]:
    samples = click.option(
        "--data",
        type=PATH,
        metavar="PATH",
        required=required,
        help="Samples: .npz (array named like the input, or 'images'; optional 'labels'), .npy, or a folder of images.",
    )
    return grouped(
        "Data",
        grouped("Options", samples),
        *normalisation_options,
        click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N samples."),
        *([] if own_batch else [batch_option]),
        shape_option,
        batch_axis_option,
    )


def _keep_threads(context: click.Context, option: click.Parameter, threads: int | None) -> int | None:
    """Let the whole command keep to so many threads."""
    if threads is not None:
        from qgraph.running.threads import limited

        context.with_resource(limited(threads))
    return threads


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    callback=_keep_threads,
    help="Threads (default: all cores).",
)


def run_options(f: F) -> F:
    return grouped(
        "Running",
        threads_option,
        click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout, everything else on stderr."),
        click.option("--quiet", is_flag=True, help="No progress bars and no tables."),
        log_options,
    )(f)


resume_option = grouped(
    "Files",
    click.option(
        "--resume",
        type=FOLDER,
        metavar="DIR",
        help="Folder for checkpoints, from which an interrupted job continues.",
    ),
)


def quality_options(f: F) -> F:
    """How the written file is judged."""
    return grouped(
        "Judging",
        click.option(
            "--measure/--no-measure",
            default=True,
            help="Compare the file with the float model on held-out samples (default), or not: then there is no guard.",
        ),
        click.option(
            "--metric",
            metavar="MODULE:FUNCTION",
            help="Measure the task by FUNCTION(outputs, labels) -> number, higher is better; also for --max-drop.",
        ),
        click.option(
            "--fail-below",
            type=Threshold(),
            help="Exit with status 1, after writing the file, if the metric is below X (else the accuracy in %, else "
            "the dB of the worst output; XdB and X% say which).",
        ),
    )(f)


def format_options(f: F) -> F:
    return grouped(
        "Files",
        click.option(
            "--format",
            type=click.Choice(["qdq", "float"]),
            help="qdq (default): integers, to deploy. float: simulation in plain float operators.",
        ),
        click.option("--opset", type=int, metavar="N", help="Raise the model to opset N."),
    )(f)


set_option = grouped(
    "Layers",
    click.option(
        "--set",
        "changes",
        multiple=True,
        metavar="NAME:weights=N|METHOD.FIELD=V",
        help="Other bits for layers by name (glob; repeatable, the last that matches counts): 'layer2.*:weights=4', "
        "'stem/conv:activations=6'; or a hyper-parameter of a method: 'zeroq.steps=500' (docs/methods lists them).",
    ),
)


keep_option = grouped(
    "Layers",
    click.option("--keep", multiple=True, metavar="NAME", help="Leave a layer in float (glob; repeatable)."),
)
edge_bits_option = grouped(
    "Layers",
    click.option(
        "--edge-bits",
        type=Bits("same"),
        help="Bits of the first and last layers; same: as all others.  [default: 8; mixed where others are]",
    ),
)
weight_clip_option = grouped(
    "Grids",
    click.option(
        "--weight-clip",
        type=Names(*_CLIPS),
        metavar="METHOD",
        help="Weight clipping: max, percentile, mse, kl or aciq.",
    ),
)
bits_options = grouped(
    "Options",
    click.option(
        "--weights",
        type=Bits("mixed", "none", layers=True),
        help="Bits of weights, 2 to 8; mixed: chosen per layer; or by name: 'head.*=8,*=4'.  "
        "[default: 8; 4 to search and finetune]",
    ),
    click.option(
        "--activations",
        type=Bits("mixed", "none", "dynamic"),
        help="Bits of activations; mixed: chosen per tensor; none: weights only; dynamic: MatMul and Gemm find their "
        "ranges in every run. The last two need no data.  [default: 8; 4 to search and finetune]",
    ),
)


portable_option = click.option(
    "--portable", is_flag=True, default=None, help="The same codes on every processor: exact steps, no saturation."
)


def recipe_options(f: F) -> F:
    """The options that override the defaults of a method."""
    return grouped(
        "Grids",
        bits_options,
        click.option(
            "--per-channel/--per-tensor", default=None, help="One scale per output channel (default), or one."
        ),
        click.option(
            "--group",
            type=Group(),
            help="So many inputs of a MatMul, Gemm or table share a step.  [default: 32 up to 4 bits]",
        ),
        click.option(
            "--symmetric/--asymmetric",
            default=None,
            help="Weight grids symmetric about zero (default at 8 bits), or with both ends chosen.",
        ),
        click.option(
            "--clip",
            type=Names(*_CLIPS, "qrater"),
            metavar="METHOD",
            help="Activation clipping: max, percentile, mse, kl, aciq or qrater.",
        ),
        weight_clip_option,
        click.option(
            "--rounding",
            type=Names("nearest", "second-order", "qrater"),
            metavar="METHOD",
            help="Rounding of weights: nearest, second-order, or qrater (searched).  [default: nearest; below 8 bits "
            "second-order, where samples prefer it]",
        ),
        click.option(
            "--effort",
            type=Names("fast", "default", "best"),
            metavar="LEVEL",
            help="Below 8 bits: fast rounds weights to second order by few samples, default by more, best also learns "
            "them block by block.",
        ),
        click.option(
            "--bias-correction/--no-bias-correction",
            default=None,
            help="Correct the norms of weights and the means of outputs.",
        ),
        click.option(
            "--allocate-bits",
            type=click.Choice(["none", "weights", "activations", "both"]),
            help="Whose channels have bits of their own: of activations by the 2/3-power rule, of weights within the "
            "same memory (--set aciq.quota=bins: by the rule).  [default: what is best, below 8 bits]",
        ),
        keep_option,
        set_option,
        edge_bits_option,
        click.option("--reduce-range", is_flag=True, default=None, help="7-bit weights, for CPUs without VNNI."),
        click.option(
            "--target",
            type=click.Choice(["batch", "decode"]),
            help="decode: weights of 4 or 8 bits stay packed in memory, faster for one row at a time.",
        ),
        click.option(
            "--target-cpu",
            type=click.Choice(["any", "vnni"]),
            help="any (default): saturates on no CPU; vnni: uses all of int8, for CPUs with VNNI (or not x86).",
        ),
        portable_option,
    )(f)


def executor_option(f: F) -> F:
    return grouped(
        "Running",
        click.option(
            "--executor",
            metavar="local|dask:ADDRESS",
            default="local",
            show_default=True,
            help="Where independent jobs run: in threads here, or on a Dask cluster.",
        ),
    )(f)


made_from_option = click.option(
    "--made-from",
    "plan",
    type=PATH,
    metavar="PLAN.json",
    help="The plan that the quantized file was made from: images are normalised as it says.",
)


def preprocessing(
    mean: tuple[float, ...], std: tuple[float, ...], *, default: QuantPlan | str | None = None
) -> Preprocessing:
    """The normalisation of images: as given, else that of a plan (or its file), from the data it was made with."""
    from qgraph.samples.preprocessing import Preprocessing

    if not mean and not std and default is not None:
        from qgraph.plan.plan import QuantPlan

        return (QuantPlan.load(default) if isinstance(default, str) else default).preprocessing
    return Preprocessing(mean=mean, std=std)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were passed; the others keep the defaults of the recipe."""
    passed = {name: value for name, value in options.items() if value is not None and value != ()}
    builder = passed.pop("gradients", None)
    if builder is not None:
        passed["settings"] = {**passed.get("settings", {}), "zeroq.builder": builder}
    return passed
