import torch
from net import network

x = torch.randn(1, 3, 32, 32)
torch.onnx.export(
    network(),
    (x,),
    "torchscript.onnx",
    input_names=["input"],
    output_names=["logits"],
    dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    dynamo=False,
    opset_version=17,
    training=torch.onnx.TrainingMode.PRESERVE,  # with the next line: keeps BatchNormalization
    do_constant_folding=False,
)
