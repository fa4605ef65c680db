"""What a batch costs."""

from lightning_gnnopt.memory.meter import PeakMeter

__all__ = ["PeakMeter"]
