"""Where the time and the memory go."""

from lightning_gnnopt.analysis.advice import Advice
from lightning_gnnopt.analysis.facts import Facts
from lightning_gnnopt.analysis.loader_monitor import LoaderMonitor
from lightning_gnnopt.analysis.profiler import GNNProfiler
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.analysis.report import BottleneckReport
from lightning_gnnopt.analysis.summary import EpochRecord, RunSummary

__all__ = [
    "Advice",
    "BottleneckReport",
    "EpochRecord",
    "Facts",
    "GNNProfiler",
    "LoaderMonitor",
    "Records",
    "RunSummary",
]
