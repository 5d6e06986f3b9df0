"""What data loaders yield: pairs of samples and labels in every form, and what is none of them."""

from __future__ import annotations

import numpy as np
import pytest

import qgraph
from qgraph.errors import DataError, DataTypeError, ModelTypeError
from qgraph.onnxfile.load import load

RNG = np.random.default_rng(0)
X, Y = RNG.random((30, 1, 8, 8), np.float32), RNG.integers(0, 10, 30)


class Tensor:
    """What torch's tensors do: numpy can read them, and iterating gives tensors."""

    def __init__(self, values):
        self.values = values
        self.shape, self.ndim = values.shape, values.ndim

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return map(Tensor, self.values)


class Samples:
    """What torch's Dataset does: it has items, and no iterator."""

    def __getitem__(self, index):
        if index == 30:
            raise IndexError
        return X[index], Y[index]


def batches(form, size=10):
    return (form(X[i : i + size], Y[i : i + size]) for i in range(0, 30, size))


@pytest.fixture(scope="module")
def net(digits):
    return load(digits)


FORMS = {
    "a tuple": lambda: batches(lambda x, y: (x, y)),
    "a list, from torch's collate": lambda: batches(lambda x, y: [x, y]),
    "tensors": lambda: batches(lambda x, y: [Tensor(x), Tensor(y)]),
    "lists as labels": lambda: batches(lambda x, y: (x, y.tolist())),
    "a mapping and labels": lambda: batches(lambda x, y: ({"input": x}, y)),
    "a mapping": lambda: batches(lambda x, y: {"input": x, "labels": y}),
    "one at a time": Samples,
    "all at once": lambda: (X, Y),
    "all at once, in tensors": lambda: (Tensor(X), Tensor(Y)),
    "columns of labels": lambda: batches(lambda x, y: (x, y[:, None])),
}


@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_samples_and_labels(net, form):
    data = qgraph.open_data(FORMS[form](), net)
    read = list(data.batches(7))
    assert np.array_equal(np.concatenate([b.feeds["input"] for b in read]), X)
    assert np.array_equal(np.concatenate([b.labels for b in read]), Y)


@pytest.mark.parametrize(
    "source",
    [
        [X[:5], X[5:]],
        (X[:5], X[5:]),
        [(X[:5],), (X[5:],)],
        Tensor(X),
        [list(X[:5]), list(X[5:])],
        [X[:2].tolist(), X[2:].tolist()],
    ],
    ids=["list", "tuple", "tuples of one", "tensor", "lists of samples", "lists of numbers"],
)
def test_samples_alone(net, source):
    data = qgraph.open_data(source, net)
    assert not data.labelled
    assert np.array_equal(np.concatenate([b.feeds["input"] for b in data.batches()]), X)


def test_inputs_in_order_and_labels_after_them(model_from_text):
    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Sub(a, b) }'
    )
    two = load(model_from_text(text))
    a, b, y = RNG.random((6, 2), np.float32), RNG.random((6, 2), np.float32), np.arange(6)
    for form in ((a, b), (a, b, y), ((a, b), y), ([a, b], y), ({"b": b, "a": a}, y)):
        data = qgraph.open_data([form], two)
        feeds = next(data.batches()).feeds
        assert np.array_equal(feeds["a"], a)
        assert np.array_equal(feeds["b"], b)
        assert data.labelled == (form[-1] is y)
    with pytest.raises(DataError, match=r"batch 0 has 4 fields: expected arrays for the model's inputs \(a, b\)"):
        qgraph.open_data([(a, b, y, y)], two)


def test_one_hot_labels_are_for_a_metric(net):
    data = qgraph.open_data((X, np.eye(10)[Y]), net)
    assert data.labels is None
    assert data.targets.shape == (30, 10)


def test_labels_by_keyword(net, digits):
    assert np.array_equal(qgraph.open_data(X, net, labels=Y.tolist()).labels, Y)
    assert np.array_equal(qgraph.open_data(qgraph.open_data(X, net), net, labels=Y).labels, Y)
    assert np.array_equal(qgraph.open_data((X, Y), net, labels=Y[::-1]).labels, Y[::-1])
    assert np.array_equal(qgraph.open_data(batches(lambda x, y: x), net, labels=Y, limit=10).labels, Y[:10])
    with pytest.raises(DataError, match="3 labels for 30 samples"):
        qgraph.open_data(X, net, labels=Y[:3])
    assert qgraph.evaluate(digits, X, labels=Y).top1 == qgraph.evaluate(digits, (X, Y)).top1 is not None
    result = qgraph.quantize(digits, X, labels=Y, method="minmax")
    assert result.quality.accuracy is not None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, "data must be a path, arrays or an iterable of batches, not NoneType"),
        ([None], "batch 0 cannot be read as an array: it is None"),
        ([X[:2], object()], "batch 1 cannot be read as an array: it is of type object"),
        ([[[1.0, 2.0], [3.0]]], "batch 0 cannot be read as an array: its rows differ in length"),
        ([(X[:2], None)], "batch 0: its labels cannot be read as an array: it is None"),
        ([(X[:2], [{"boxes": 1}, {}])], "labels must be numbers, not a list of others"),
        ([(X[:2], ["a", "b"])], "labels must be numbers, not a list of others"),
        ({"input": None}, "the given mapping: 'input' cannot be read as an array: it is None"),
    ],
)
def test_what_is_no_batch_gets_a_sentence(net, wrong, said):
    with pytest.raises(DataTypeError, match=said) as found:
        qgraph.open_data(wrong, net)
    assert isinstance(found.value, TypeError)
    with pytest.raises(DataError, match="labels for"):
        qgraph.open_data((X, Y[:3]), net)


@pytest.mark.parametrize("wrong", [None, 3, X, {"model": 1}, qgraph.QuantPlan(model="m", recipe="r")], ids=type)
def test_what_is_no_model_gets_a_sentence(wrong):
    with pytest.raises(ModelTypeError, match=r"a model is a path, an onnx.ModelProto, .* or a result, not"):
        qgraph.evaluate(wrong, X)


def test_a_data_set_shows_itself_in_a_line(net):
    pairs = qgraph.open_data(batches(lambda x, y: (x, y)), net, limit=20)
    assert repr(pairs) == "Dataset(20 samples with labels of input (10, 1, 8, 8), from the given batches)"
    assert repr(qgraph.open_data(X, net)) == "Dataset(30 samples of input (30, 1, 8, 8), from the given array)"
    assert repr(net) == f"Model({net.source}, opset {net.opset}, {net.nbytes:,} bytes)"
