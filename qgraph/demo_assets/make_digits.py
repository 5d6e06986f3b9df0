"""Make the demo's network and data: `python make_digits.py` writes its three siblings.

    digits.onnx              a small residual CNN, BatchNormalization kept, opset 18
    digits_calibration.npz   the 1,197 training images: uint8 `images` N x 8 x 8 x 1, int64 `labels` N
    digits_test.npz          the 600 held-out images, the same arrays

The package never imports this file. It needs torch, scikit-learn, onnx, onnx-ir and onnxruntime; the
committed files were made with torch 2.13.0 on one CPU thread. The same versions on the same kind of CPU give
the same bytes.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998, https://doi.org/10.24432/C50P49 (CC BY 4.0), in the copy that scikit-learn carries. Its pixels 0..16 are
rescaled to 0..255. No setting was chosen on the test split: `--validate` holds 200 training images out and
writes nothing.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

import argparse
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.passes.common import (
    DeduplicateInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).parent
OPSET = 18
IR_VERSION = 8
METADATA = {
    "description": "Residual CNN for 8 x 8 grey digits; input = pixels / 255.",
    "training_data": "Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C50P49, CC BY 4.0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the network is trained."""

    seed: int = 0
    epochs: int = 80
    batch: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 5e-2
    rotation_degrees: float = 10.0
    shift_pixels: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images uint8 N x 8 x 8 x 1 with their labels int64 N."""

    images: np.ndarray
    labels: np.ndarray

    def save(self, path: Path) -> None:
        np.savez_compressed(path, images=self.images, labels=self.labels)

    def take(self, indices: np.ndarray) -> "Split":
        return Split(images=self.images[indices], labels=self.labels[indices])

    def tensors(self) -> tuple[Tensor, Tensor]:
        """What the network reads: float32 N x 1 x 8 x 8 in [0, 1]."""
        pixels = self.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
        return torch.from_numpy(pixels), torch.from_numpy(self.labels)


class ConvBn(nn.Module):
    """Conv-BN, with a ReLU unless the block's skip comes first."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class Add(nn.Module):
    """The sum of a skip: a module, so that its node gets a name."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Skip(nn.Module):
    """ReLU(x + second(first(x)))."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second
        self.add, self.relu = Add(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.add(x, self.second(self.first(x))))


class DigitsNet(nn.Module):
    """Stem, residual block, depthwise-separable block, strided conv, pooling, classifier."""

    def __init__(self, width: int = 32, features: int = 96):
        super().__init__()
        self.stem = ConvBn(1, width)
        self.residual = Skip(ConvBn(width, width), ConvBn(width, width, relu=False))
        self.separable = Skip(ConvBn(width, width, groups=width), ConvBn(width, width, 1, relu=False))
        self.reduce = ConvBn(width, features, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(self.separable(self.residual(self.stem(x))))
        return self.classifier(self.flatten(self.pool(x)))


def splits() -> tuple[Split, Split]:
    """The 1,797 digits of scikit-learn: 1,197 for training and calibration, 600 for the test."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return hold_out(Split(images=images, labels=digits.target.astype(np.int64)), test_size=600)


def hold_out(split: Split, *, test_size: int) -> tuple[Split, Split]:
    """A stratified random split, always the same."""
    indices = np.arange(len(split.labels))
    train, test = train_test_split(indices, test_size=test_size, stratify=split.labels, random_state=0)
    return split.take(train), split.take(test)


def augment(x: Tensor, training: Training) -> Tensor:
    """Rotate and shift every image by a random amount, bilinear, zeros outside."""
    count, _, _, size = x.shape
    angle = (torch.rand(count) * 2 - 1) * math.radians(training.rotation_degrees)
    shift = (torch.rand(count, 2) * 2 - 1) * (training.shift_pixels * 2 / size)
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1)
    grid = nn.functional.affine_grid(rows.view(count, 2, 3), list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, align_corners=False)


def train(split: Split, training: Training) -> DigitsNet:
    """AdamW with a one-cycle schedule; the last step's weights are the result."""
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    net = DigitsNet()
    images, labels = split.tensors()
    steps = len(labels) // training.batch
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.learning_rate, training.epochs * steps)
    for _ in range(training.epochs):
        order = torch.randperm(len(labels))
        for batch in order[: steps * training.batch].view(steps, training.batch):
            loss = nn.functional.cross_entropy(net(augment(images[batch], training)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: DigitsNet) -> onnx.ModelProto:
    """The network as ONNX with its BatchNormalization nodes kept, in inference mode."""
    file = io.BytesIO()
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        file,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,  # the newer exporter folds BatchNormalization away
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    model = ir.from_proto(onnx.load_from_string(file.getvalue()))
    tidy(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def tidy(model: ir.Model) -> None:
    """Drop what is not needed and name every node after its module: `/stem/conv/Conv` becomes `stem/conv`."""
    for a_pass in (DeduplicateInitializersPass(), RemoveUnusedNodesPass(), ShapeInferencePass()):
        a_pass(model)
    for node in model.graph:
        node.name = (node.name or "").strip("/").removesuffix(f"/{node.op_type}")
        node.doc_string = None
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = f"{node.name}:0"
    model.graph.name = "digits"
    model.ir_version = IR_VERSION
    model.metadata_props.update(METADATA)


def correct(logits: np.ndarray, split: Split) -> int:
    return int((logits.argmax(axis=1) == split.labels).sum())


def torch_logits(net: DigitsNet, split: Split) -> np.ndarray:
    with torch.no_grad():
        return net(split.tensors()[0]).numpy()


def onnx_logits(model: onnx.ModelProto, split: Split) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": split.tensors()[0].numpy()})[0]


def validate() -> None:
    """Train on part of the training split and say how the rest fares."""
    fitted, held_out = hold_out(splits()[0], test_size=200)
    for seed in range(3):
        net = train(fitted, Training(seed=seed))
        print(f"seed {seed}: {correct(torch_logits(net, held_out), held_out)} of 200 held-out training images")


def write() -> None:
    """Train, export, check the export against torch, and write the three files."""
    calibration, test = splits()
    net = train(calibration, Training())
    model = export(net)
    expected, found = torch_logits(net, test), onnx_logits(model, test)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    if correct(found, test) != correct(expected, test):
        raise SystemExit("onnxruntime and torch disagree on the test split")
    onnx.save(model, HERE / "digits.onnx")
    calibration.save(HERE / "digits_calibration.npz")
    test.save(HERE / "digits_test.npz")
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{parameters:,} parameters; {correct(found, test)} of {len(test.labels)} test images right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--validate", action="store_true", help="try the settings on held-out training images, write nothing"
    )
    validate() if parser.parse_args().validate else write()
