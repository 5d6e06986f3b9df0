import torch
from net import network

x = torch.randn(1, 3, 32, 32)
torch.onnx.export(
    network(),
    (x,),
    "dynamo.onnx",
    input_names=["input"],
    output_names=["logits"],
    dynamic_shapes=({0: torch.export.Dim("batch")},),
    optimize=False,  # keeps BatchNormalization, which distillation without data reads
    external_data=False,
)
