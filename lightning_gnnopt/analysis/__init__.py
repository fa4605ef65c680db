"""Where the time and the memory go."""

from lightning_gnnopt.analysis.loader_monitor import LoaderMonitor
from lightning_gnnopt.analysis.summary import EpochRecord, RunSummary

__all__ = ["EpochRecord", "LoaderMonitor", "RunSummary"]
