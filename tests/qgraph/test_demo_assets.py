"""The demo's network and data: small, BatchNormalization kept, as accurate as the README says."""

from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

ASSETS = ("digits.onnx", "digits_calibration.npz", "digits_test.npz")
TEST_IMAGES = 600
CALIBRATION_IMAGES = 1197
CORRECT = 598  # of TEST_IMAGES, in torch and in onnxruntime alike


@pytest.fixture(scope="module")
def assets():
    with as_file(files("qgraph") / "demo_assets") as folder:
        yield folder


@pytest.fixture(scope="module")
def model(assets: Path) -> onnx.ModelProto:
    return onnx.load(assets / "digits.onnx")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        assert sorted(data.files) == ["images", "labels"]
        return data["images"], data["labels"]


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": images.transpose(0, 3, 1, 2).astype(np.float32) / 255})[0]


def shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_assets_are_small(assets):
    sizes = {name: (assets / name).stat().st_size for name in ASSETS}
    assert sizes["digits.onnx"] < 400_000
    assert sum(sizes.values()) < 700_000


def test_the_model_passes_the_checker_at_a_plain_opset(model):
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version == 8


def test_the_interface_is_one_image_batch_in_and_logits_out(model):
    graph = model.graph
    assert {value.name: shape(value) for value in graph.input} == {"input": ["batch", 1, 8, 8]}
    assert {value.name: shape(value) for value in graph.output} == {"logits": ["batch", 10]}
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def test_every_kind_of_layer_is_there_with_its_batch_norm_in_inference_mode(model):
    nodes = model.graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds == {
        "Conv": 6, "BatchNormalization": 6, "Relu": 6, "Add": 2,
        "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "BatchNormalization":
            assert len(node.output) == 1
            assert attributes.get("training_mode", 0) == 0
    groups = {n.name: a.i for n in nodes for a in n.attribute if a.name == "group"}
    assert {name: group for name, group in groups.items() if group > 1} == {"separable/first/conv": 32}


def test_every_node_is_named_after_its_module(model):
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(name and not name.startswith("/") for name in names)
    assert names[0] == "stem/conv"
    assert names[-1] == "classifier"


def test_no_initializer_is_stored_twice(model):
    contents = [(tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer]
    assert len(set(contents)) == len(contents)


def test_the_model_names_the_source_of_its_training_data(model):
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert "https://doi.org/10.24432/C50P49" in metadata["training_data"]
    assert "CC BY 4.0" in metadata["training_data"]


@pytest.mark.parametrize(
    ("name", "count"), [("digits_calibration.npz", CALIBRATION_IMAGES), ("digits_test.npz", TEST_IMAGES)]
)
def test_a_split_is_uint8_images_last_axis_channels_with_labels(assets, name, count):
    images, labels = read(assets / name)
    assert (images.dtype, images.shape) == (np.uint8, (count, 8, 8, 1))
    assert (labels.dtype, labels.shape) == (np.int64, (count,))
    assert (images.min(), images.max()) == (0, 255)
    shares = np.bincount(labels, minlength=10) / count
    np.testing.assert_allclose(shares, 0.1, rtol=0, atol=0.005)


def test_no_test_image_is_among_those_of_training(assets):
    training, test = (read(assets / name)[0] for name in ASSETS[1:])
    assert not {image.tobytes() for image in training} & {image.tobytes() for image in test}


def test_the_network_reads_the_digits(assets, model):
    images, labels = read(assets / "digits_test.npz")
    assert (logits(model, images).argmax(axis=1) == labels).sum() == CORRECT


def test_the_batch_axis_is_dynamic(assets, model):
    images, _ = read(assets / "digits_test.npz")
    apart = np.concatenate([logits(model, images[:1]), logits(model, images[1:7])])
    np.testing.assert_allclose(logits(model, images[:7]), apart, rtol=0, atol=1e-4)
