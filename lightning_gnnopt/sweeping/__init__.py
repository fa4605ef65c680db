"""Sweeps: what became of each job, and all of them in a table."""

from lightning_gnnopt.sweeping.collecting import Job
from lightning_gnnopt.sweeping.outcome import Outcome
from lightning_gnnopt.sweeping.report import SweepReport, collect_outcomes
from lightning_gnnopt.sweeping.result import record_result
from lightning_gnnopt.sweeping.tables import Stat, SummaryRow
from lightning_gnnopt.sweeping.writer import OutcomeWriter

__all__ = [
    "Job",
    "Outcome",
    "OutcomeWriter",
    "Stat",
    "SummaryRow",
    "SweepReport",
    "collect_outcomes",
    "record_result",
]
