"""LSQ+: scales, offsets and weights learned on the quantized network (Bhalgat et al., 2020)."""

from qgraph.lsqplus.biases import settle_biases
from qgraph.lsqplus.config import LsqPlusConfig, Schedule
from qgraph.lsqplus.initialise import initialise
from qgraph.lsqplus.judge import Judgement
from qgraph.lsqplus.step import check_trainable
from qgraph.lsqplus.train import Training, train

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
