"""Quantize ONNX models on a CPU, with or without data, for stock onnxruntime.

Every public name is available as `qgraph.NAME`; the module behind it is imported when the name is first used.

Example:
    >>> from importlib.resources import files
    >>> import qgraph
    >>> demo = files("qgraph") / "demo_assets"
    >>> result = qgraph.quantize(demo / "digits.onnx", demo / "digits_calibration.npz", limit=16, measure=False)
    >>> result.save("digits_int8.onnx") < (demo / "digits.onnx").stat().st_size / 3
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qgraph.running.slim import slim_onnx_ir
from qgraph.version import __version__ as __version__

if TYPE_CHECKING:
    from qgraph.assess.ablation import ablate as ablate
    from qgraph.assess.compare import compare as compare
    from qgraph.assess.evaluate import evaluate as evaluate
    from qgraph.errors import DataError as DataError
    from qgraph.errors import ModelError as ModelError
    from qgraph.errors import PlanError as PlanError
    from qgraph.errors import QGraphError as QGraphError
    from qgraph.errors import UsageError as UsageError
    from qgraph.jobs.adopt import Adopted as Adopted
    from qgraph.jobs.adopt import adopt as adopt
    from qgraph.jobs.apply import apply as apply
    from qgraph.jobs.certify import Certificate as Certificate
    from qgraph.jobs.certify import certify as certify
    from qgraph.jobs.certify import check_certificate as check_certificate
    from qgraph.jobs.equalise import equalise as equalise
    from qgraph.jobs.finetune import finetune as finetune
    from qgraph.jobs.probe import Probe as Probe
    from qgraph.jobs.probe import probe as probe
    from qgraph.jobs.quantize import quantize as quantize
    from qgraph.jobs.result import Result as Result
    from qgraph.jobs.search import search as search
    from qgraph.jobs.sensitivity import measure_sensitivity as measure_sensitivity
    from qgraph.jobs.whatif import WhatIf as WhatIf
    from qgraph.jobs.whatif import whatif as whatif
    from qgraph.methods.lsqplus.config import LsqPlusConfig as LsqPlusConfig
    from qgraph.methods.qrater.config import SearchConfig as SearchConfig
    from qgraph.methods.zeroq.distill import distill as distill
    from qgraph.onnxfile.write import save as save
    from qgraph.plan.plan import QuantPlan as QuantPlan
    from qgraph.plan.registry import method as method
    from qgraph.samples.dataset import Dataset as Dataset
    from qgraph.samples.dataset import open_data as open_data
    from qgraph.samples.preprocessing import Preprocessing as Preprocessing

_HOMES = {
    "Dataset": "samples.dataset",
    "Preprocessing": "samples.preprocessing",
    "DataError": "errors",
    "ModelError": "errors",
    "PlanError": "errors",
    "QGraphError": "errors",
    "UsageError": "errors",
    "QuantPlan": "plan.plan",
    "method": "plan.registry",
    "SearchConfig": "methods.qrater.config",
    "search": "jobs.search",
    "WhatIf": "jobs.whatif",
    "whatif": "jobs.whatif",
    "Result": "jobs.result",
    "apply": "jobs.apply",
    "open_data": "samples.dataset",
    "adopt": "jobs.adopt",
    "Adopted": "jobs.adopt",
    "certify": "jobs.certify",
    "check_certificate": "jobs.certify",
    "Certificate": "jobs.certify",
    "quantize": "jobs.quantize",
    "save": "onnxfile.write",
    "compare": "assess.compare",
    "evaluate": "assess.evaluate",
    "equalise": "jobs.equalise",
    "finetune": "jobs.finetune",
    "ablate": "assess.ablation",
    "distill": "methods.zeroq.distill",
    "measure_sensitivity": "jobs.sensitivity",
    "probe": "jobs.probe",
    "Probe": "jobs.probe",
    "LsqPlusConfig": "methods.lsqplus.config",
}
__all__ = sorted(_HOMES)
slim_onnx_ir()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qgraph' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qgraph.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
