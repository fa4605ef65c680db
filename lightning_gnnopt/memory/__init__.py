"""What a batch costs, and how it is made to fit."""

from lightning_gnnopt.memory.budget import read_budget
from lightning_gnnopt.memory.events import EventRecorder, can_record, record_events
from lightning_gnnopt.memory.meter import Peak, PeakMeter
from lightning_gnnopt.memory.watermark import Watermark

__all__ = ["EventRecorder", "Peak", "PeakMeter", "Watermark", "can_record", "read_budget", "record_events"]
