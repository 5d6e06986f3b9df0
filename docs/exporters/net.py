"""The network that the PyTorch recipes export: three convolutions with BatchNormalization, and a classifier."""

import torch
from torch import nn


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = []
    for channels_in, channels, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2)):
        conv = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        for _ in range(20):  # running statistics of something
            net(torch.randn(32, 3, 32, 32))
    return net.eval()
