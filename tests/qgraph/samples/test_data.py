"""Every source of samples, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qgraph.errors import DataError
from qgraph.onnxfile.load import load
from qgraph.samples.dataset import open_data
from qgraph.samples.preprocessing import Preprocessing

RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (5, 6, 4, 3), np.uint8)


def model(model_from_text, shape="N,3,6,4", kind="float"):
    dims = shape.split(",")
    return load(
        model_from_text(f"""
        <ir_version: 8, opset_import: ["": 17]>
        net ({kind}[{shape}] x) => ({kind}[{",".join(dims)}] y) {{ y = Identity(x) }}""")
    )


def joined(dataset, size=2, name="x"):
    return np.concatenate([b.feeds[name][: b.count] for b in dataset.batches(size)])


def test_images_become_channels_first_floats(model_from_text):
    data = open_data(IMAGES, model(model_from_text))
    np.testing.assert_array_equal(joined(data), (IMAGES / np.float32(255)).transpose(0, 3, 1, 2))


def test_images_stay_channels_last_where_the_model_wants_it(model_from_text):
    data = open_data(IMAGES, model(model_from_text, "N,6,4,3"))
    np.testing.assert_array_equal(joined(data), IMAGES / np.float32(255))


def test_mean_and_std_are_per_channel(model_from_text):
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    data = open_data(IMAGES, model(model_from_text), preprocessing=preprocessing)
    expected = (IMAGES / np.float32(255) - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 1.0, 2.0])
    np.testing.assert_allclose(joined(data), expected.transpose(0, 3, 1, 2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sizes", ["N,3,6,4", "N,6,4,3"])
def test_limits_are_what_the_ends_of_pixels_become(model_from_text, sizes):
    chosen = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    ends = [np.full_like(IMAGES, pixel) for pixel in (0, 255)]
    made = [joined(open_data(end, model(model_from_text, sizes), preprocessing=chosen)) for end in ends]
    for limit, expected in zip(chosen.limits(made[0].shape), made, strict=True):
        np.testing.assert_array_equal(np.broadcast_to(limit, expected.shape), expected)


@pytest.mark.parametrize(
    ("mean", "std", "shape"),
    [
        ((), (), (8, 3, 6, 4)),
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), (8, 3, 6, 4)),
        ((0.5,), (0.5,), (8, 40)),
        ((0.5,), (0.5,), (8, 64, 6, 6)),
        ((0.5, 0.5), (0.5, 0.5), (8, 3, 6, 4)),
    ],
    ids=["nothing said", "units of pixels", "no image", "features", "other channels"],
)
def test_limits_are_unknown(mean, std, shape):
    assert Preprocessing(mean=mean, std=std).limits(shape) is None


def test_float_arrays_are_normalised_but_not_divided(model_from_text):
    floats = RNG.random((5, 3, 6, 4), np.float32)
    data = open_data(floats, model(model_from_text), preprocessing=Preprocessing(mean=(0.5,), std=(2.0,)))
    np.testing.assert_allclose(joined(data), (floats - 0.5) / 2, rtol=1e-6)


def test_bytes_stay_bytes_for_a_model_of_bytes(model_from_text):
    data = open_data(IMAGES, model(model_from_text, "N,6,4,3", "uint8"))
    np.testing.assert_array_equal(joined(data), IMAGES)


@pytest.mark.parametrize("key", ["x", "images", "anything"])
def test_npz_by_name(model_from_text, tmp_path, key):
    np.savez(tmp_path / "d.npz", **{key: IMAGES}, labels=np.arange(5))
    data = open_data(tmp_path / "d.npz", model(model_from_text), limit=3)
    assert data.count == 3
    batches = list(data.batches(2))
    assert [b.count for b in batches] == [2, 1]
    assert [b.labels.tolist() for b in batches] == [[0, 1], [2]]


def test_npy_and_folder(model_from_text, tmp_path):
    net = model(model_from_text)
    np.save(tmp_path / "d.npy", IMAGES)
    for index, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    np.testing.assert_array_equal(joined(open_data(tmp_path / "d.npy", net)), joined(open_data(tmp_path, net)))


def test_pictures_are_resized_to_the_model(model_from_text, tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    Image.fromarray(IMAGES[1][:3]).convert("L").save(tmp_path / "b.jpg")
    assert joined(open_data(tmp_path, model(model_from_text, "N,3,12,8"))).shape == (2, 3, 12, 8)
    assert joined(open_data(tmp_path, model(model_from_text, "N,1,12,8"))).shape == (2, 1, 12, 8)


def test_pictures_of_any_size_for_a_model_of_any_size(model_from_text, tmp_path):
    for name, shape in (("a", (6, 4, 3)), ("b", (6, 4, 3)), ("c", (5, 7, 3))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.png")
    data = open_data(tmp_path, model(model_from_text, "N,3,H,W"))
    assert [b.feeds["x"].shape for b in data.batches(8)] == [(2, 3, 6, 4), (1, 3, 5, 7)]


def test_a_fixed_batch_is_padded(model_from_text):
    data = open_data(IMAGES, model(model_from_text, "4,3,6,4"))
    batches = list(data.batches(32))
    assert [b.count for b in batches] == [4, 1]
    assert all(b.feeds["x"].shape == (4, 3, 6, 4) for b in batches)
    np.testing.assert_array_equal(joined(data), (IMAGES / np.float32(255)).transpose(0, 3, 1, 2))


def test_an_iterator_is_read_once_and_only_as_far_as_needed(model_from_text):
    read = []

    def batches():
        for index in range(10):
            read.append(index)
            yield IMAGES[:2]

    data = open_data(batches(), model(model_from_text), limit=5)
    assert read == [0, 1, 2]
    assert data.count == 5
    np.testing.assert_array_equal(joined(data), joined(data))
    assert len(joined(data)) == 5


def test_empty_batches_of_an_iterator_are_skipped(model_from_text):
    data = open_data(iter([IMAGES[:0], IMAGES, IMAGES[:0]]), model(model_from_text))
    assert data.count == 5


def test_several_inputs_by_name(model_from_text):
    net = load(
        model_from_text("""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N,2] a, int64[N] b) => (float[N,2] c, int64[N] d) { c = Identity(a)
          d = Identity(b) }""")
    )
    a, b = RNG.random((3, 2), np.float32), np.arange(3)
    (batch,) = open_data({"a": a, "b": b}, net).batches(4)
    np.testing.assert_array_equal(batch.feeds["a"], a)
    np.testing.assert_array_equal(batch.feeds["b"], b)
    with pytest.raises(DataError, match="different numbers of samples"):
        open_data({"a": a, "b": b[:2]}, net)
    with pytest.raises(DataError, match="name the arrays like the inputs"):
        open_data({"a": a}, net)
    with pytest.raises(DataError, match="needs int64"):
        list(open_data({"a": a, "b": a[:, 0]}, net).batches(4))


def test_what_is_no_data_is_refused(model_from_text):
    with pytest.raises(DataError, match="not int"):
        open_data(3, model(model_from_text))
    with pytest.raises(DataError, match="holds no samples"):
        open_data([], model(model_from_text))
    with pytest.raises(DataError, match="limit must be at least 1"):
        open_data(IMAGES, model(model_from_text), limit=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_named(model_from_text, bad):
    samples = np.zeros((7, 3, 6, 4), np.float32)
    samples[4, 1, 2, 3] = bad
    data = open_data(samples, model(model_from_text))
    with pytest.raises(DataError, match="sample 4 of input 'x' has NaN or infinite values"):
        list(data.batches(3))
    assert len(list(open_data(samples[:4], model(model_from_text)).batches(3))) == 2


def test_samples_given_again_take_a_limit_and_preprocessing(digits, digits_calibration) -> None:
    net = load(digits)
    whole = open_data(digits_calibration, net, limit=10)
    assert open_data(whole, net) is whole
    chosen = Preprocessing(mean=(0.5,), std=(0.25,))
    fewer = open_data(whole, net, limit=4, preprocessing=chosen)
    assert (fewer.count, fewer.preprocessing) == (4, chosen)
    assert open_data(fewer, net, limit=8).count == 4
