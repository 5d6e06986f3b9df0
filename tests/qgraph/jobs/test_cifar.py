"""The promises on real networks, with a margin; the benchmarks hold the figures themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

import qgraph
from qgraph.assess.fused import inspect_fused
from qgraph.onnxfile.model import Model
from qgraph.running.sessions import Session, in_parallel

CIFAR = qgraph.Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def calibration(shared):
    with np.load(shared / "data" / "cifar10_train20k.npz") as archive:
        return archive["images"][:256]


@pytest.fixture(scope="module")
def test_images(shared):
    with np.load(shared / "data" / "cifar10_test.npz") as archive:
        return {"images": archive["images"], "labels": archive["labels"]}


@pytest.fixture(scope="module")
def few_images(test_images):
    return {name: array[:1500] for name, array in test_images.items()}


def quantized(shared, name, calibration, **options) -> tuple[Model, qgraph.Result]:
    result = qgraph.quantize(shared / "models" / f"{name}.onnx", calibration, preprocessing=CIFAR, **options)
    return Model(ir_model=result.model, source=name, nbytes=result.nbytes), result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("cifar10_resnet20", {}, 91.4),
        ("cifar10_resnet20", {"weights": 4}, 91.3),
        ("cifar10_resnet20", {"weights": 4, "activations": 4}, 90.4),
        ("cifar10_relu6_dw", {"weights": 4}, 86.2),
        ("cifar10_silu_se", {}, 88.1),
    ],
)
def test_accuracy(shared, calibration, test_images, name, options, least):
    model, _ = quantized(shared, name, calibration, **options)
    assert qgraph.evaluate(model, test_images, preprocessing=CIFAR).top1 >= least


@pytest.mark.parametrize(
    ("name", "options", "least", "drop"),
    [
        ("cifar10_resnet20", {}, 30.5, 0.3),
        ("cifar10_resnet20", {"weights": 4, "activations": 4}, 13.9, 1.5),  # 0.9 of 10,000; 1,500 are +-0.4 off
        ("cifar10_relu6_dw", {"weights": 4}, 20.9, 0.5),
        ("cifar10_silu_se", {}, 28.5, 0.4),
    ],
)
def test_outputs_and_accuracy_on_few_images(shared, calibration, few_images, name, options, least, drop):
    model, _ = quantized(shared, name, calibration, **options)
    assert {layer.kernel for layer in inspect_fused(model).layers if layer.op == "Conv"} == {"QLinearConv"}
    source = shared / "models" / f"{name}.onnx"
    quality = qgraph.evaluate(model, few_images, against=source, preprocessing=CIFAR)
    assert quality.sqnr_db >= least
    assert quality.top1 >= qgraph.evaluate(source, few_images, preprocessing=CIFAR).top1 - drop


def test_four_bits_weigh_half(shared, calibration):
    few = calibration[:32]
    made = {b: quantized(shared, "cifar10_resnet32", few, weights=b, measure=False)[1] for b in (4, 8)}
    sizes = {bits: result.nbytes for bits, result in made.items()}
    assert sizes[4] <= 0.62 * sizes[8]


def test_simulation_and_deployment_agree(shared, calibration, few_images):
    """Same class on 99.5% of all images, as far as 1,500 tell: by chance at most 15 of them differ.

    Logits differ by up to 1.5 in the worst image (of some 10 to 20): where a value lies at the edge between two codes,
    a difference in the last bit of a float moves it by a whole step.
    """
    images = few_images["images"]
    plan = quantized(shared, "cifar10_resnet20", calibration, measure=False)[1].plan
    outputs = []
    for format in ("qdq", "float"):
        model = qgraph.apply(shared / "models" / "cifar10_resnet20.onnx", plan, format=format)
        data = qgraph.open_data(images, model, preprocessing=CIFAR)
        session = Session(model.ir_model, threads=1)
        outputs.append(np.concatenate(list(in_parallel(lambda b: session.run(b.feeds)["logits"], data.batches(50)))))  # noqa: B023
    changed = int((outputs[0].argmax(axis=1) != outputs[1].argmax(axis=1)).sum())
    assert changed <= binom.ppf(0.995, len(images), 0.005)
    assert np.abs(outputs[0] - outputs[1]).max() < 1.5


def test_face_detector_sees_what_the_float_model_sees(shared):
    source, pictures = shared / "models" / "face_rfb320.onnx", shared / "data" / "faces"
    preprocessing = qgraph.Preprocessing(mean=(127 / 255,), std=(128 / 255,))
    result = qgraph.quantize(source, pictures, preprocessing=preprocessing)
    model = Model(ir_model=result.model, source="faces", nbytes=result.nbytes)
    assert all(layer.integer for layer in inspect_fused(model).layers)
    quality = qgraph.evaluate(model, pictures, against=source, preprocessing=preprocessing)
    assert quality.outputs["scores"] > 30
    assert quality.outputs["boxes"] > 40
    assert any("Exp" in kept.name for kept in result.plan.kept_float)
