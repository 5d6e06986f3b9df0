"""Quantize ONNX models on a CPU, with or without data, for stock onnxruntime."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qgraph.comparison import compare as compare
    from qgraph.data import Dataset as Dataset
    from qgraph.data import open_data as open_data
    from qgraph.errors import DataError as DataError
    from qgraph.errors import ModelError as ModelError
    from qgraph.errors import PlanError as PlanError
    from qgraph.errors import QGraphError as QGraphError
    from qgraph.errors import UsageError as UsageError
    from qgraph.evaluation import evaluate as evaluate
    from qgraph.finetuning import finetune as finetune
    from qgraph.lsqplus import LsqPlusConfig as LsqPlusConfig
    from qgraph.model import save as save
    from qgraph.pipeline import apply as apply
    from qgraph.pipeline import quantize as quantize
    from qgraph.plan import QuantPlan as QuantPlan
    from qgraph.preprocessing import Preprocessing as Preprocessing
    from qgraph.qrater import SearchConfig as SearchConfig
    from qgraph.result import Result as Result
    from qgraph.searching import search as search

_HOMES = {
    "Dataset": "data",
    "Preprocessing": "preprocessing",
    "DataError": "errors",
    "ModelError": "errors",
    "PlanError": "errors",
    "QGraphError": "errors",
    "UsageError": "errors",
    "QuantPlan": "plan",
    "SearchConfig": "qrater",
    "search": "searching",
    "Result": "result",
    "apply": "pipeline",
    "open_data": "data",
    "quantize": "pipeline",
    "save": "model",
    "compare": "comparison",
    "evaluate": "evaluation",
    "finetune": "finetuning",
    "LsqPlusConfig": "lsqplus",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qgraph' has no attribute '{name}'")
    return getattr(importlib.import_module(f"qgraph.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
