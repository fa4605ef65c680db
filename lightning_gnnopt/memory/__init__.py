"""What a batch costs, and how it is made to fit."""

from lightning_gnnopt.memory.budget import read_budget
from lightning_gnnopt.memory.control import MemoryControl
from lightning_gnnopt.memory.events import EventRecorder, can_record, record_events
from lightning_gnnopt.memory.meter import Peak, PeakMeter
from lightning_gnnopt.memory.policy import MemoryBudgetError
from lightning_gnnopt.memory.tally import Tally
from lightning_gnnopt.memory.watermark import Watermark

__all__ = [
    "EventRecorder",
    "MemoryBudgetError",
    "MemoryControl",
    "Peak",
    "PeakMeter",
    "Tally",
    "Watermark",
    "can_record",
    "read_budget",
    "record_events",
]
