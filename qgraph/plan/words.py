"""Words that options take, and names of methods, where they are needed before anything else is imported."""

from __future__ import annotations

from typing import Literal, get_args

PROTOCOLS = ("deploy", "paper")
ROUNDINGS = ("nearest", "second-order", "qrater")
Effort = Literal["fast", "default", "best"]
EFFORTS: tuple[str, ...] = get_args(Effort)
Direction = Literal["forward", "reverse"]  # KL(float || quantized), KL(quantized || float)
DIRECTIONS: tuple[str, ...] = get_args(Direction)

TargetCpu = Literal["any", "vnni"]
TARGET_CPUS: tuple[str, ...] = get_args(TargetCpu)
Target = Literal["batch", "decode"]
TARGETS: tuple[str, ...] = get_args(Target)
ALLOCATIONS = ("none", "weights", "activations", "both")
SEARCHES = ("frontier", "groups")
SAME = "same"  # the bits of the first and last layers where they are those of all others
SECOND_ORDER = "second-order"
RECONSTRUCT = "reconstruct"
SEARCHED = "qrater"  # the clip or rounding that is found by measuring the task
DISTILS = "zeroq"  # the method whose hyper-parameters are those of distilling and of mixing bits
TRAINS = "lsqplus"  # the method whose hyper-parameters are those of every training
