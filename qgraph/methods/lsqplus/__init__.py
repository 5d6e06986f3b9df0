"""LSQ+: scales, offsets and weights learned on the quantized network (Bhalgat et al., 2020)."""

from qgraph.methods.lsqplus.biases import settle_biases
from qgraph.methods.lsqplus.config import LsqPlusConfig, Schedule
from qgraph.methods.lsqplus.holdout import Judgement
from qgraph.methods.lsqplus.initialise import initialise
from qgraph.methods.lsqplus.step import check_trainable
from qgraph.methods.lsqplus.train import Training, train

__all__ = [
    "Judgement",
    "LsqPlusConfig",
    "Schedule",
    "Training",
    "check_trainable",
    "initialise",
    "settle_biases",
    "train",
]
