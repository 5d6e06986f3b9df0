"""Whether a request makes sense: each check says what cannot be, and what to give instead."""

from __future__ import annotations

import qmath
from qgraph.errors import UsageError
from qgraph.plan import registry
from qgraph.plan.budgets import BUDGETS, check_budgets
from qgraph.plan.recipe import Recipe
from qgraph.plan.words import (
    ALLOCATIONS,
    DIRECTIONS,
    DISTILS,
    EFFORTS,
    PROTOCOLS,
    ROUNDINGS,
    SAME,
    SEARCHED,
    SEARCHES,
    TARGET_CPUS,
    TARGETS,
    TRAINS,
)
from qgraph.running.wording import option

_WORDS = (
    ("allocate_bits", (None, *ALLOCATIONS)),
    ("search", SEARCHES),
    ("direction", DIRECTIONS),
    ("target_cpu", TARGET_CPUS),
    ("target", TARGETS),
    ("protocol", PROTOCOLS),
    ("effort", EFFORTS),
)
_BESIDE_BITS = {"weights": ("mixed",), "activations": ("mixed", "dynamic"), "edge_bits": (SAME,)}


def check_request(recipe: Recipe, has_data: bool) -> None:
    """Raise `UsageError` for settings that are unknown, or that contradict each other."""
    _bits(recipe)
    _groups(recipe)
    _words(recipe)
    check_budgets({name: getattr(recipe, name) for name in BUDGETS})
    _targets(recipe)
    _mixed(recipe)
    _settings(recipe)
    _learned(recipe)
    if recipe.needs_data and not has_data and "data" in registry.find(recipe.method).needs:
        raise UsageError(
            f"method '{recipe.method}' needs data to quantize activations or to mix bits: pass {option('data')}, or "
            f"{option('activations', None)} for weights of fixed bits alone"
        )


def _bits(recipe: Recipe) -> None:
    for name, words in _BESIDE_BITS.items():
        bits = getattr(recipe, name)
        if bits is not None and bits not in words and (not isinstance(bits, int) or not 2 <= bits <= 8):
            raise UsageError(f"{option(name)} must be a number from 2 to 8, not {bits}")
    if not recipe.bits or any(not 2 <= bits <= 8 for bits in recipe.bits):
        raise UsageError(f"{option('bits')} must be numbers from 2 to 8, such as 2,4,8, not {recipe.bits}")
    if recipe.weights is None and recipe.activations is None:
        raise UsageError(f"both {option('weights', None)} and {option('activations', None)} leave nothing to quantize")
    if recipe.weights is None:
        raise UsageError(
            f"{option('weights', None)} with quantized activations has no integer kernel: give {option('weights', 8)}"
        )


def _groups(recipe: Recipe) -> None:
    group = recipe.group
    if group not in (None, "none") and (not isinstance(group, int) or group < 2):
        raise UsageError(f"{option('group')} must be a number of inputs from 2 on, such as 32, or none, not {group}")
    fitted = recipe.per_channel and not recipe.ingredients and not registry.find(recipe.method).trains
    if isinstance(group, int) and not fitted:
        raise UsageError(
            f"{option('group')} is for grids by least squares: not for {option('per_channel', False)}, searched or "
            f"trained ones"
        )


def _words(recipe: Recipe) -> None:
    for name, clips in (("clip", (*qmath.clip_methods(), SEARCHED)), ("weight_clip", qmath.clip_methods())):
        if getattr(recipe, name) not in clips:
            raise UsageError(f"unknown clip method '{getattr(recipe, name)}': choose one of {', '.join(clips)}")
    if recipe.rounding not in (None, *ROUNDINGS):
        raise UsageError(f"unknown rounding '{recipe.rounding}': choose one of {', '.join(ROUNDINGS)}")
    for name, known in _WORDS:
        if getattr(recipe, name) not in known:
            words = ", ".join(word for word in known if word is not None)
            raise UsageError(f"{option(name)} must be one of {words}, not '{getattr(recipe, name)}'")


def _targets(recipe: Recipe) -> None:
    """What the file is to run on leaves some grids out."""
    if recipe.dynamic and (recipe.ingredients or registry.find(recipe.method).trains):
        raise UsageError(
            f"{option('activations', 'dynamic')} leaves no grid to search or to train: give bits, or "
            f"{option('method')} minmax or aciq"
        )
    packed = recipe.activations is None and recipe.group != "none" and recipe.per_channel
    if recipe.target == "decode" and not packed:
        raise UsageError(
            f"{option('target', 'decode')} multiplies floats with blocks of codes: not with "
            f"{option('activations')} or without {option('group')}"
        )
    if recipe.portable and recipe.activations is None:
        raise UsageError(
            f"{option('portable', True)} is for codes of activations: without them, products are floats, which "
            f"processors round differently; give {option('activations', 8)}"
        )


def _mixed(recipe: Recipe) -> None:
    if recipe.mixes_activations and recipe.search != SEARCHES[0]:
        raise UsageError(f"{option('search', recipe.search)} measures weights alone: not with {option('activations')}")
    if recipe.mixed and recipe.allocate_bits not in (None, "none"):
        raise UsageError(
            f"{option('weights' if recipe.mixes_weights else 'activations', 'mixed')} gives bits to layers, "
            f"{option('allocate_bits')} to channels: choose one of them"
        )


def _settings(recipe: Recipe) -> None:
    """A hyper-parameter must be of a method that takes part; distilling and mixing may always."""
    steps = [step for name in (*recipe.methods, *recipe.offered) for step in registry.chain(name)]
    taking_part = {step.name for step in steps} | {DISTILS} | ({TRAINS} if any(s.trains for s in steps) else set())
    for name, _ in recipe.settings:
        if name.partition(".")[0] not in taking_part:
            raise UsageError(
                f"{option('settings')}: {name} has no effect: method '{recipe.method}' is made of "
                f"{', '.join(sorted(taking_part))}"
            )


def _learned(recipe: Recipe) -> None:
    """What is trained needs no help of other kinds."""
    if not registry.find(recipe.method).trains:
        return
    if recipe.symmetric is False:
        raise UsageError(
            f"{option('symmetric', False)} is for grids that are not trained: LSQ+ learns weight grids with "
            f"{option('symmetric', True)}"
        )
    if recipe.effort != "default":
        raise UsageError(
            f"{option('effort')} is for plans that are not trained: method '{recipe.method}' has epochs of its own"
        )
    if recipe.correct_outputs:
        raise UsageError(
            f"{option('correct_outputs')} is for plans that are not trained: method '{recipe.method}' learns its biases"
        )
