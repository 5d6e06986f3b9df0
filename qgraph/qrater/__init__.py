"""Q-Rater: clipping, rounding and bias correction found by measuring the task (Kim et al., 2021)."""

from qgraph.qrater.config import SearchConfig as SearchConfig
from qgraph.qrater.journal import JournalError as JournalError
from qgraph.qrater.protocol import paper_plan as paper_plan
from qgraph.qrater.search import Found as Found
from qgraph.qrater.search import search as search
