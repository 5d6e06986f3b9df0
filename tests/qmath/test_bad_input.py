"""Every public function, given input of every odd kind: a clear error or the right answer.

`CALLS` says for each public name how to call it with one array; a name that is neither there nor in `NOT_CALLED` fails.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import qmath

NOT_CALLED = {
    "constants and types": {"BINS", "Exponent", "Prior", "ReadingLayer", "Rounding"},
    "results that functions hand out": {
        "Balance",
        "BiasCorrection",
        "ClipRange",
        "Equalised",
        "Frontier",
        "GroupGrids",
        "LsqConfiguration",
        "LsqGradients",
        "Margin",
        "Moments",
        "PriorFit",
        "PriorRanges",
        "SecondOrderRounding",
        "Selection",
        "Statistics",
    },
    "functions of no array": {
        "Granularity",
        "add_margin",
        "clip_method",
        "clip_methods",
        "drop_bound",
        "drop_confidence",
        "get_threads",
        "lsq_configuration",
        "lsq_gradient_scale",
        "midrise_levels",
        "midtread_levels",
        "rounding_table",
        "set_threads",
        "share_bound",
        "share_confidence",
    },
}

WEIGHTS = np.array([[0.5, -1.0, 2.0, 0.25], [1.5, 0.75, -0.5, 3.0], [-2.5, 1.25, 0.125, -0.75]])
POSITIVE = np.abs(WEIGHTS)
CODES = np.array([[1, -2, 3, 0], [2, 1, -1, 3], [-3, 1, 0, -1]])
TABLE = qmath.rounding_table(0.4, 0.5, bits=3)
GRID = qmath.Grid(3, 0.5)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with one array; `keeps` names the bad values that have a right answer there."""

    run: Callable[[Any], Any]
    good: np.ndarray
    keeps: frozenset[str] = frozenset()


def accumulate(x):
    accumulator = qmath.StatisticsAccumulator()
    accumulator.update(x)
    return accumulator.result()


def searched(costs):
    return qmath.group_search(costs, [[1, 2, 3, 4]] * 3, lambda choices: float(np.sum(choices)))


def moments(x):
    accumulator = qmath.MomentsAccumulator()
    accumulator.update([x], np.ones((len(x), 2)))
    return accumulator.result()


def equalised(weight):
    tensor = {"low": [-1, -1, -4], "high": [1, 1, 4], "moment": [0.1, 0.1, 2.0]}
    return qmath.equalise_channels([qmath.ReadingLayer(**tensor, weight=weight, bits=4, weight_bits=8)])


HALVES = [moments(WEIGHTS), moments(WEIGHTS[::-1])]
FORM = WEIGHTS.T @ WEIGHTS + np.eye(4)
SATURATES = frozenset({"infinite"})
CALLS = {
    "Gaussian": Call(lambda x: qmath.Gaussian(0.0, x).pdf(0.5), POSITIVE),
    "Grid": Call(lambda x: qmath.Grid(4, x, axis=0), POSITIVE[0]),
    "Histogram": Call(lambda x: qmath.Histogram(counts=x, exponent=0), np.array([1, 0, 3, 2])),
    "Laplace": Call(lambda x: qmath.Laplace(0.0, x).pdf(0.5), POSITIVE),
    "RoundingTable": Call(
        lambda x: qmath.RoundingTable(bits=4, signed=True, edges=x, codes=[0, 1, 2, 3, 4]), np.arange(4.0)
    ),
    "StatisticsAccumulator": Call(accumulate, WEIGHTS, frozenset({"empty"})),
    "MomentsAccumulator": Call(moments, WEIGHTS),
    "aimed_weights": Call(lambda x: qmath.aimed_weights(x, HALVES), WEIGHTS[:2]),
    "clipped_statistics": Call(
        lambda x: qmath.clipped_statistics(qmath.Gaussian(x, np.ones(4)), low=0, reach=4.0).mean, POSITIVE[0]
    ),
    "group_grids": Call(lambda x: qmath.group_grids(x, bits=3, group=2).error, WEIGHTS),
    "neighbour_moments": Call(lambda x: qmath.neighbour_moments(x, taps=3), POSITIVE[0]),
    "pair_range": Call(lambda x: qmath.pair_range(x, 0, 7), CODES),
    "round_second_order": Call(lambda x: qmath.round_second_order(x, FORM, GRID).codes, WEIGHTS),
    "odd_steps": Call(lambda x: qmath.odd_steps(x, 0.125), POSITIVE),
    "round_pairs": Call(lambda x: qmath.round_pairs(x, 4), WEIGHTS),
    "short_steps": Call(lambda x: qmath.short_steps(x, 3), POSITIVE),
    "significant_bits": Call(qmath.significant_bits, POSITIVE),
    "sum_range": Call(lambda x: qmath.sum_range(x, 0, 7), CODES),
    "allocate_bits": Call(lambda x: qmath.allocate_bits(x, bits=4), POSITIVE[0]),
    "allocate_bits_rounded": Call(lambda x: qmath.allocate_bits_rounded(x, bits=4), POSITIVE[0]),
    "balance_channels": Call(lambda x: qmath.balance_channels([-1, 0, -2], [2, 1, 9], [1, 1, 4], x), WEIGHTS),
    "bias_correction": Call(lambda x: qmath.bias_correction(x, CODES / 2), WEIGHTS),
    "clip_range": Call(lambda x: qmath.clip_range(x, method="mse", bits=4), WEIGHTS),
    "cosine_similarity": Call(lambda x: qmath.cosine_similarity(x, CODES), WEIGHTS),
    "dequantize": Call(lambda x: qmath.dequantize(x, GRID), CODES),
    "exact_error": Call(lambda x: qmath.exact_error(qmath.Laplace(), x), np.arange(4.0)),
    "expected_error": Call(lambda x: qmath.expected_error(qmath.Laplace(), x, 4), POSITIVE),
    "fake_quantize": Call(lambda x: qmath.fake_quantize(x, GRID), WEIGHTS, frozenset({"infinite", "nan"})),
    "fit_prior": Call(qmath.fit_prior, np.random.default_rng(0).normal(size=500)),
    "folded_offset": Call(lambda x: qmath.folded_offset(x, 0.5), WEIGHTS),
    "gauss_clip": Call(lambda x: qmath.gauss_clip(x, 4), POSITIVE),
    "goodness_of_fit": Call(lambda x: qmath.goodness_of_fit(qmath.Laplace(), x), WEIGHTS),
    "group_search": Call(lambda x: searched(x).choices, POSITIVE),
    "kl_divergence": Call(lambda x: qmath.kl_divergence(x, CODES), WEIGHTS),
    "knapsack": Call(lambda x: qmath.knapsack(x, [[1, 2, 3, 4]] * 3, 8), POSITIVE),
    "laplace_clip": Call(lambda x: qmath.laplace_clip(x, 4), POSITIVE),
    "least_error": Call(lambda x: qmath.least_error(x, bits=4), WEIGHTS),
    "lsq_gradients": Call(lambda x: qmath.lsq_gradients(np.ones(np.shape(x)), x, 0.5, bits=3), WEIGHTS),
    "lsq_quantize": Call(lambda x: qmath.lsq_quantize(x, 0.5, bits=3), WEIGHTS),
    "lsq_scale": Call(lambda x: qmath.lsq_scale(x, bits=3), WEIGHTS),
    "lsqplus_weight_scale": Call(lambda x: qmath.lsqplus_weight_scale(x, bits=3), WEIGHTS),
    "minmax_parameters": Call(lambda x: qmath.minmax_parameters(x, 9.0, bits=3), WEIGHTS),
    "mse_parameters": Call(lambda x: qmath.mse_parameters(x, bits=3), WEIGHTS),
    "optimal_bins": Call(lambda x: qmath.optimal_bins(x, bits=4), POSITIVE[0]),
    "equalise_channels": Call(equalised, WEIGHTS),
    "lookup_bits": Call(lambda x: qmath.lookup_bits(x, bits=4), np.array([9, 1, 0, 3])),
    "lookup_probabilities": Call(qmath.lookup_probabilities, np.array([9, 1, 0, 3])),
    "round_evenly": Call(lambda x: qmath.round_evenly(x, GRID), WEIGHTS),
    "soft_round": Call(lambda x: qmath.soft_round(x, 4.0), WEIGHTS),
    "output_shift": Call(lambda x: qmath.output_shift(x, CODES / 2, np.ones(4)), WEIGHTS),
    "pareto_frontier": Call(lambda x: qmath.pareto_frontier(x, [[1, 2, 3, 4]] * 3), POSITIVE),
    "power_ratio_db": Call(lambda x: qmath.power_ratio_db(x, 2.0), POSITIVE, frozenset({"infinite"})),
    "prior_clip": Call(lambda x: qmath.prior_clip(qmath.Laplace(), x), np.array([2, 3, 4, 8])),
    "prior_ranges": Call(
        lambda x: qmath.prior_ranges([qmath.Histogram(counts=x, exponent=0)], bits=4, one_sided=False).high,
        np.array([1, 0, 3, 2]),
    ),
    "quantize": Call(lambda x: qmath.quantize(x, GRID), WEIGHTS, SATURATES),
    "rectified_prior": Call(lambda x: qmath.rectified_prior(qmath.Laplace, x, 9.0), POSITIVE),
    "rounding_offset": Call(lambda x: qmath.rounding_offset(x, 0.4, 0.5, bits=3), WEIGHTS),
    "sqnr_db": Call(lambda x: qmath.sqnr_db(x, CODES), WEIGHTS),
    "weight_clip": Call(lambda x: qmath.weight_clip(x, bits=4), WEIGHTS),
    "weight_range": Call(lambda x: qmath.weight_range(x, bits=4), WEIGHTS),
}
METHODS = {
    "Grid.affine": Call(lambda x: qmath.Grid.affine(x, 5.0, bits=4, axis=0), WEIGHTS[0]),
    "Grid.symmetric": Call(lambda x: qmath.Grid.symmetric(x, bits=4, axis=0), POSITIVE[0]),
    "Grid.with_offset": Call(lambda x: qmath.Grid.with_offset(x, 5.0, bits=4, axis=0), WEIGHTS[0]),
    "Histogram.of": Call(qmath.Histogram.of, WEIGHTS),
    "RoundingTable.fake_quantize": Call(lambda x: TABLE.fake_quantize(x, 0.5), WEIGHTS, frozenset({"infinite", "nan"})),
    "RoundingTable.quantize": Call(lambda x: TABLE.quantize(x, 0.5), WEIGHTS, SATURATES),
    "RoundingTable.thresholds": Call(lambda x: TABLE.thresholds(x), POSITIVE),
    "Statistics.of": Call(lambda x: qmath.Statistics.of(x, channel_axis=0), WEIGHTS, frozenset({"empty"})),
    "Gaussian.fit": Call(qmath.Gaussian.fit, WEIGHTS),
    "Laplace.fit": Call(qmath.Laplace.fit, WEIGHTS),
}
EVERY = CALLS | METHODS


def plain(result: Any) -> Any:
    """A result as nested lists, for comparison."""
    if dataclasses.is_dataclass(result):
        names = [field.name for field in dataclasses.fields(result) if field.compare]
        return [type(result).__name__, *(plain(getattr(result, name)) for name in names)]
    if isinstance(result, tuple | list):
        return [plain(item) for item in result]
    return result.tolist() if isinstance(result, np.ndarray | np.generic) else result


def strided(x: np.ndarray) -> np.ndarray:
    wide = np.zeros((*x.shape, 3), x.dtype)
    wide[..., 1] = x
    return wide[..., 1]


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "non-contiguous": strided,
    "reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "Fortran": np.asfortranarray,
    "read-only": read_only,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "list": lambda x: x.tolist(),
}


def test_every_public_name_is_here() -> None:
    excused = set().union(*NOT_CALLED.values())
    assert not excused & set(CALLS)
    assert excused | set(CALLS) == set(qmath.__all__)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_byte_order_do_not_matter(name, layout) -> None:
    call = EVERY[name]
    assert plain(call.run(LAYOUTS[layout](call.good))) == plain(call.run(call.good))


@pytest.mark.parametrize("name", EVERY)
def test_input_is_not_written_to(name) -> None:
    call = EVERY[name]
    given = call.good.copy()
    call.run(given)
    np.testing.assert_array_equal(given, call.good)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, np.float32])
def test_other_types_are_the_same_numbers(name, dtype) -> None:
    """Integers and half precision hold these numbers exactly; float32 arithmetic may differ in the last digits."""
    call = EVERY[name]
    if name == "dequantize" and np.dtype(dtype).kind == "f":
        pytest.skip("codes are integers")
    values = call.good.astype(dtype)
    if np.dtype(dtype).kind == "i":
        values = np.where(values == 0, call.good > 0, values).astype(dtype) if (call.good > 0).all() else values
    expected = outcome(call, values.astype(np.int64 if name == "dequantize" else np.float64))
    compare(plain(outcome(call, values)), plain(expected))


def outcome(call: Call, x: Any) -> Any:
    """The result, or the message of the error."""
    try:
        return call.run(x)
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def compare(found: Any, expected: Any) -> None:
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            compare(one, other)
    elif isinstance(expected, str) and ": " in expected:
        assert str(found).split(": ")[0] == expected.split(": ")[0]
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    else:
        assert found == expected


def spoil(x: np.ndarray, value: float) -> np.ndarray:
    spoilt = x.astype(np.float64)
    spoilt.flat[1] = value
    return spoilt


BAD = {
    "nan": lambda x: spoil(x, np.nan),
    "infinite": lambda x: spoil(x, np.inf),
    "empty": lambda x: x[:0],
    "text": lambda x: np.full(x.shape, "a"),
    "complex": lambda x: x.astype(complex),
    "objects": lambda x: np.full(x.shape, None),
    "dates": lambda x: x.astype("datetime64[s]"),
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", BAD)
def test_bad_values_raise_an_error_that_says_so(name, kind) -> None:
    call = EVERY[name]
    bad = BAD[kind](call.good)
    if kind in call.keeps:
        call.run(bad)  # its own tests say what comes out
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        call.run(bad)
    message = str(caught.value)
    assert len(message) > 15
    assert "not supported for the input types" not in message  # numpy's words, not ours
    assert "could not convert" not in message


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("stride", ["full", "zero"])
def test_equal_values_give_an_answer_or_an_error(name, value, stride) -> None:
    """All zero, all equal, and zero-strided: the same answer for either layout, never a NaN or a warning."""
    call = EVERY[name]
    one = call.good.dtype.type(value)
    x = np.full(call.good.shape, one) if stride == "full" else np.broadcast_to(one, call.good.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = plain(outcome(call, x))
        assert found == plain(outcome(call, np.full(call.good.shape, one)))
    assert "nan" not in repr(found)


WRONG = {
    "bits": [0, -1, 17, 2.5, np.nan, "4", True],
    "axis": [7, -7, 0.5],
    "configuration": [0, 5],
    "exponent": ["other"],
    "grid": ["other"],
    "method": ["other"],
    "rounding": ["other"],
    "scale": [0.0, -1.0, np.nan, np.inf],
    "gamma_n": [1.5, np.nan],
    "gamma_s": [1.5, -0.5, np.nan],
}
OPTIONS: dict[str, Callable[..., Any]] = {
    "Grid": lambda bits=4, scale=1.0: qmath.Grid(bits, scale),
    "clip_range": lambda bits=4, method="mse": qmath.clip_range(WEIGHTS, bits=bits, method=method),
    "expected_error": lambda bits=4: qmath.expected_error(qmath.Laplace(), 1.0, bits),
    "fake_quantize": lambda rounding="half_up": qmath.fake_quantize(WEIGHTS, GRID, rounding=rounding),
    "gauss_clip": lambda bits=4, grid="midrise": qmath.gauss_clip(1.0, bits, exact=True, grid=grid),
    "laplace_clip": lambda bits=4, grid="midrise": qmath.laplace_clip(1.0, bits, exact=True, grid=grid),
    "Laplace": lambda scale=1.0: qmath.Laplace(0.0, scale),
    "Gaussian": lambda scale=1.0: qmath.Gaussian(0.0, scale),
    "least_error": lambda bits=4: qmath.least_error(WEIGHTS, bits=bits),
    "lsq_gradient_scale": lambda bits=4, configuration=4: qmath.lsq_gradient_scale(
        9, bits=bits, configuration=configuration
    ),
    "lsq_quantize": lambda bits=4, scale=1.0, configuration=4: qmath.lsq_quantize(
        WEIGHTS, scale, bits=bits, configuration=configuration
    ),
    "lsq_scale": lambda bits=4, axis=0, configuration=4: qmath.lsq_scale(
        WEIGHTS, bits=bits, axis=axis, configuration=configuration
    ),
    "lsqplus_weight_scale": lambda bits=4, axis=0: qmath.lsqplus_weight_scale(WEIGHTS, bits=bits, axis=axis),
    "midrise_levels": lambda bits=4: qmath.midrise_levels(1.0, bits),
    "midtread_levels": lambda bits=4: qmath.midtread_levels(1.0, bits),
    "minmax_parameters": lambda bits=4, configuration=4: qmath.minmax_parameters(
        0.0, 1.0, bits=bits, configuration=configuration
    ),
    "mse_parameters": lambda bits=4, configuration=4: qmath.mse_parameters(
        WEIGHTS, bits=bits, configuration=configuration
    ),
    "prior_clip": lambda bits=4: qmath.prior_clip(qmath.Laplace(), bits),
    "prior_ranges": lambda bits=4: qmath.prior_ranges([qmath.Histogram.of(WEIGHTS)], bits=bits, one_sided=False),
    "quantize": lambda rounding="half_up": qmath.quantize(WEIGHTS, GRID, rounding=rounding),
    "rounding_offset": lambda bits=4, gamma_n=0.5, gamma_s=0.5, exponent="printed": qmath.rounding_offset(
        1.0, gamma_n, gamma_s, bits=bits, exponent=exponent
    ),
    "rounding_table": lambda bits=4, gamma_n=0.5, gamma_s=0.5, exponent="printed": qmath.rounding_table(
        gamma_n, gamma_s, bits=bits, exponent=exponent
    ),
    "weight_clip": lambda bits=4, axis=0, method="mse": qmath.weight_clip(WEIGHTS, bits=bits, axis=axis, method=method),
    "weight_range": lambda bits=4, axis=0, method="mse": qmath.weight_range(
        WEIGHTS, bits=bits, axis=axis, method=method
    ),
}
WRONG_OPTIONS = [
    (name, option, value)
    for name, run in OPTIONS.items()
    for option in inspect.signature(run).parameters
    for value in WRONG[option]
]


@pytest.mark.parametrize(("name", "option", "value"), WRONG_OPTIONS)
def test_wrong_options_raise_an_error_that_says_so(name, option, value) -> None:
    OPTIONS[name]()
    with pytest.raises((ValueError, TypeError)) as caught:
        OPTIONS[name](**{option: value})
    assert len(str(caught.value)) > 15


class Tensor:
    """What torch's tensors do with numpy."""

    def __init__(self, values, *, records=False):
        self.values, self.records = np.asarray(values), records

    def __array__(self, dtype=None, copy=None):
        if self.records:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return self.values.astype(dtype or self.values.dtype)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "found None"),
        ("abc", "found the text 'abc'"),
        ([[1, 2], [3]], "found a list whose rows differ in length"),
        ([None, 1.0], "found a list of NoneType"),
        (["a", "b"], "found a list of text"),
        (object(), "found an object"),
        (GRID, "found a Grid"),
        ({"x": 1.0}, "found a dict"),
        (Tensor([1.0], records=True), "found a Tensor: Can't call numpy.. on Tensor that requires grad. Use"),
    ],
)
def test_what_is_no_array_gets_a_sentence(wrong, said):
    for use in (qmath.fake_quantize, qmath.quantize):
        with pytest.raises(TypeError, match=f"^x: expected real numbers, {said}") as found:
            use(wrong, GRID)
        assert len(str(found.value)) < 160
    with pytest.raises(TypeError, match=f"^data: expected real numbers, {said}"):
        qmath.clip_range(wrong, bits=3)


def test_tensors_of_other_libraries_are_arrays():
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    assert np.array_equal(qmath.fake_quantize(Tensor(x), GRID), qmath.fake_quantize(x, GRID))
    assert qmath.clip_range(Tensor(x), bits=3) == qmath.clip_range(x, bits=3)
