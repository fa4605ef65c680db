"""The training thread's side of a trace."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_gnnopt.analysis.fits.trace import TRAINING, TraceSpan
from lightning_gnnopt.analysis.recording.session import HostSpan


def spans_of_steps(spans: Iterable[HostSpan]) -> list[TraceSpan]:
    """Turn the stretches of traced steps into spans of a trace.

    On a device the stretches are those in which the host handed out the work, not those in which the device did it.

    Args:
        spans: Stretches, in their order.
    """
    found = []
    for span in spans:
        label = span.label
        inner = " ".join(part for part in (label.layer, label.kind if not label.part else "", label.part) if part)
        name = f"{label.phase}: {inner}" if inner else label.phase
        found.append(TraceSpan(TRAINING, "training: steps", name, span.start_s, span.end_s, {"batch": span.batch}))
    return found
