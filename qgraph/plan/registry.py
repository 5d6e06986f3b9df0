"""The registry of methods: the defaults and needs of each, and its function from a plan to a better plan.

A method registers itself where it is defined: in the `__init__` of its folder in `qgraph/methods`, or in a module of
another package. From Python, importing that module is enough; the command line also finds methods that an installed
package lists by name in the entry-point group `qgraph.methods`::

    @method("mine", defaults={"weights": 4}, needs=["data"])
    def mine(plan, given):
        \"""One line that --help and the documentation show.\"""
        return plan.map_layers(...)

Names and defaults are known without importing any engine: a function imports what it needs when it is called.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from qgraph.errors import UsageError, first_line
from qgraph.running.wording import option

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from qgraph.plan.plan import QuantPlan

PLACE = "qgraph.methods"  # the package whose folders are methods, and the entry-point group of other packages' methods
Need = Literal["data", "labels", "batch norm"]
NEEDS: tuple[Need, ...] = get_args(Need)
Function: TypeAlias = "Callable[..., QuantPlan]"


@dataclass(frozen=True, slots=True)
class InPaper:
    """What the paper of a method says of one option or hyper-parameter, and why another value is the default.

    `name` is a field of `Recipe`, such as `clip`, or a hyper-parameter as `--set` takes it, such as `zeroq.steps`.
    `value` is what `--protocol paper` sets.
    """

    name: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A registered method.

    `function` takes a plan and what is known about the network (`qgraph.observe.material.Material`) and returns a plan.
    `defaults` are fields of `Recipe`. `needs` says what the caller must give: "data" (without it, samples are distilled
    from the model), "labels" with the data, or "batch norm" in the model.

    `after` names the method that runs before and whose defaults apply as well; without it, the function receives the
    full-range plan. `once`: the function runs only once, after every layer has its bits, not for each width that is
    tried. `trains`: training of the weights starts from the plan (`qgraph finetune`).

    `configs` are the dataclasses of its hyper-parameters, as `module:class`, which `--set METHOD.FIELD=VALUE` reaches.
    `paper` is where its paper differs from the defaults: `--protocol paper`.
    """

    name: str
    function: Function
    defaults: Mapping[str, Any]
    needs: frozenset[Need]
    after: str | None
    once: bool
    trains: bool
    configs: tuple[str, ...] = ()
    paper: tuple[InPaper, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    needs: Collection[Need] = (),
    after: str | None = None,
    once: bool = False,
    trains: bool = False,
    configs: Collection[str] = (),
    paper: Collection[InPaper] = (),
) -> Callable[[Function], Function]:
    """Register a function (plan, given) -> plan as the method `name`.

    Args:
        name: what users pass as `--method`.
        defaults: fields of `Recipe` that the method sets, such as `weights` or `clip`.
        needs: what the caller must give: "data", "labels" or "batch norm".
        after: the method that runs before; its defaults apply as well.
        once: run once, after every layer has its bits, not for each width that is tried.
        trains: training of the weights starts from the plan (`qgraph finetune`).
        configs: frozen dataclasses of hyper-parameters, as `module:class`, for `--set NAME.FIELD=VALUE`.
        paper: what `--protocol paper` sets, where the method has a paper.

    Raises:
        ValueError: the name is taken, or a need is unknown.

    Example:
        >>> import dataclasses
        >>> from importlib.resources import files
        >>> import qgraph
        >>> @qgraph.method("no-shifts", after="aciq", defaults={"weights": 4})
        ... def no_shifts(plan, given):
        ...     \"""ACIQ without shifts of the biases.\"""
        ...     return plan.map_layers(lambda layer: dataclasses.replace(layer, bias_shift=()))
        >>> network = files("qgraph") / "demo_assets" / "digits.onnx"
        >>> result = qgraph.quantize(network, method="no-shifts", activations=None, measure=False)
        >>> result.plan.recipe
        'no-shifts'
    """
    if unknown := sorted(set(needs) - set(NEEDS)):
        raise ValueError(f"method '{name}' needs '{unknown[0]}', which is none of {', '.join(NEEDS)}")

    def register(function: Function) -> Function:
        if not function.__module__.startswith(f"{PLACE}."):
            _read_folders()  # so that nobody can take one of our names first
        if name in _METHODS:
            taken = _METHODS[name].function
            raise ValueError(f"method '{name}' is already registered, by {taken.__module__}.{taken.__qualname__}")
        _METHODS[name] = Method(
            name=name,
            function=function,
            defaults=dict(defaults or {}),
            needs=frozenset(needs),
            after=after,
            once=once,
            trains=trains,
            configs=tuple(configs),
            paper=tuple(paper),
        )
        return function

    return register


def find(name: str) -> Method:
    """The method of this name; raises `UsageError` if there is none."""
    _read_folders()
    if name not in _METHODS:
        for entry in _entry_points():
            if entry.name == name:
                _load(entry)
    if name not in _METHODS:
        raise UsageError(f"unknown method '{name}': choose one of {', '.join(method_names())}")
    return _METHODS[name]


def method_names() -> tuple[str, ...]:
    """The names of all methods that `find` knows, without importing other packages."""
    _read_folders()
    return tuple(dict.fromkeys((*_METHODS, *(entry.name for entry in _entry_points()))))


def training_methods() -> tuple[str, ...]:
    """The names of methods that training starts from; asks every method, those of other packages too."""
    return tuple(name for name in method_names() if find(name).trains)


def methods_with_papers() -> tuple[str, ...]:
    """The names of methods that have the protocol of a paper; without importing other packages."""
    _read_folders()
    return tuple(sorted(name for name, known in _METHODS.items() if known.paper))


def chain(name: str) -> tuple[Method, ...]:
    """The methods that make a plan in turn: those that `name` builds on, then itself."""
    steps = [find(name)]
    while (before := steps[0].after) is not None:
        if before in [step.name for step in steps]:
            raise ValueError(f"method '{name}' stands on itself, by way of '{before}'")
        steps.insert(0, find(before))
    return tuple(steps)


def defaults(name: str) -> dict[str, Any]:
    """The defaults of a method, on top of those of the methods it builds on."""
    return {option: value for step in chain(name) for option, value in step.defaults.items()}


def in_paper(name: str) -> dict[str, Any]:
    """What `--protocol paper` sets for a method, by name of the option or hyper-parameter.

    Raises `UsageError` for a method without a paper of its own.
    """
    rows = find(name).paper
    if not rows:
        known = ", ".join(methods_with_papers())
        raise UsageError(f"method '{name}' has no protocol of a paper: {option('protocol', 'paper')} is for {known}")
    return {row.name: row.value for row in rows}


def run(name: str, plan: QuantPlan, given: Any, *, once: bool = False, **settings: Any) -> QuantPlan:
    """Pass a plan through the functions of `chain(name)`: those that run for every width, or those that run `once`.

    `settings` are the method's own and go only to its function. Raises `UsageError` if a function does not return a
    plan.
    """
    from qgraph.plan.plan import QuantPlan

    for step in chain(name):
        if step.once == once:
            plan = step.function(plan, given, **(settings if step.name == name else {}))
            if not isinstance(plan, QuantPlan):
                raise UsageError(
                    f"method '{step.name}' must return a QuantPlan, and its function {step.function.__module__}."
                    f"{step.function.__qualname__} returned {type(plan).__name__}"
                )
    return plan


@functools.cache
def _read_folders() -> None:
    """Import every folder of `PLACE`, so that it registers its method."""
    for folder in pkgutil.iter_modules(importlib.import_module(PLACE).__path__):
        importlib.import_module(f"{PLACE}.{folder.name}")


def _entry_points() -> Collection[EntryPoint]:
    from importlib.metadata import entry_points

    return entry_points(group=PLACE)


def _load(entry: EntryPoint) -> None:
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        entry.load()
    except Exception as error:
        raise UsageError(
            f"method '{entry.name}' cannot be imported from '{package}': {first_line(error)}; mend or uninstall that "
            f"package"
        ) from error
    if entry.name not in _METHODS:
        raise UsageError(f"'{package}' lists the method '{entry.name}', but {entry.value} registers none of that name")
