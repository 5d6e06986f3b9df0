"""Q-Rater: clipping, rounding and bias correction found by measuring the task (Kim et al., 2021)."""

from qgraph.methods.qrater.config import SearchConfig as SearchConfig
from qgraph.methods.qrater.journal import JournalError as JournalError
from qgraph.methods.qrater.protocol import paper_plan as paper_plan
from qgraph.methods.qrater.search import Found as Found
from qgraph.methods.qrater.search import search as search
