"""Where the time and the memory go."""

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.loader_monitor import LoaderMonitor
from lightning_gnnopt.analysis.profiler import GNNProfiler
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.analysis.reporting.report import BottleneckReport
from lightning_gnnopt.analysis.summary import EpochRecord, RunSummary
from lightning_gnnopt.analysis.sweeps.sweep import graph_sweep, sampling_sweep

__all__ = [
    "Advice",
    "BottleneckReport",
    "EpochRecord",
    "Facts",
    "GNNProfiler",
    "LoaderMonitor",
    "Records",
    "RunSummary",
    "graph_sweep",
    "sampling_sweep",
]
