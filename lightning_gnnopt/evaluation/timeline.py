"""Who did what when, and a figure of it."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_gnnopt._names import unknown_name

Side = Literal["training", "writing", "validation"]
SIDES: tuple[Side, ...] = get_args(Side)

_COLORS = {"training": "tab:blue", "writing": "tab:green", "validation": "tab:orange"}
_LABELS = 40  # more numbers than these do not fit beside each other


@dataclass(frozen=True)
class Span:
    """Something that took a while.

    Attributes:
        side: Who did it.
        what: What was done, in a few words.
        start_s: When it began, by `time.monotonic`.
        end_s: When it ended.
        step: The step of the snapshot that it was done to; None if it was done to none.
    """

    side: Side
    what: str
    start_s: float
    end_s: float
    step: int | None = None


class Timeline:
    """Remembers the last spans of time of training, writing and validation.

    Several threads may record.

    Args:
        max_spans: How many spans are kept; older ones are forgotten.

    Attributes:
        recorded: How many spans there were, the forgotten ones included.

    Example:
        >>> timeline = Timeline(max_spans=1)
        >>> timeline.record("training", "epoch 0", 0.0, 1.0)
        >>> timeline.record("validation", "step 10", 1.0, 1.5, step=10)
        >>> timeline.spans, timeline.recorded
        ((Span(side='validation', what='step 10', start_s=1.0, end_s=1.5, step=10),), 2)
    """

    def __init__(self, *, max_spans: int = 10_000) -> None:
        if max_spans < 1:
            raise ValueError(
                f"`max_spans` must be at least 1, but got {max_spans}. HINT: a span takes about 200 bytes."
            )
        self.recorded = 0
        self._spans: deque[Span] = deque(maxlen=max_spans)
        self._lock = threading.Lock()

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans that are kept, in the order they were recorded."""
        with self._lock:
            return tuple(self._spans)

    def record(self, side: Side, what: str, start_s: float, end_s: float, step: int | None = None) -> None:
        """Remember a span.

        Raises:
            ValueError: If the side is unknown or the span ends before it begins.
        """
        if side not in SIDES:
            raise ValueError(f"{unknown_name('side', side, SIDES)} HINT: `side` says who did it.")
        if end_s < start_s:
            raise ValueError(
                f"`end_s` must not be before `start_s`, but {what!r} is from {start_s} to {end_s}."
                " HINT: take both from `time.monotonic`."
            )
        with self._lock:
            self._spans.append(Span(side, what, start_s, end_s, step))
            self.recorded += 1

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw a row for each side.

        A triangle is the moment training took a snapshot; an arrow leads from it to the end of its validation, so its
        length along the time axis is how long the verdict took. Validations have their snapshots' steps above them.

        Args:
            ax: Matplotlib axes to draw on; a new figure by default.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(10, 2.8), layout="constrained")
        spans = self.spans
        origin_s = min((span.start_s for span in spans), default=0.0)
        rows = [side for side in SIDES if any(span.side == side for span in spans)][::-1]
        for y, side in enumerate(rows):
            bars = [
                (span.start_s - origin_s, span.end_s - span.start_s)
                for span in spans
                if span.side == side and not _is_snapshot(span)
            ]
            ax.broken_barh(bars, (y - 0.3, 0.6), facecolor=_COLORS[side], edgecolor="white", linewidth=0.5)
        self._draw_snapshots(ax, spans, rows, origin_s)
        title = "Training and validation"
        if self.recorded > len(spans):
            title += f" (the last {len(spans):,} of {self.recorded:,} spans)"
        ax.set(xlabel="time [s]", yticks=range(len(rows)), yticklabels=rows, ylim=(-0.5, max(len(rows), 1) - 0.2))
        ax.set_title(title, loc="left")
        ax.autoscale(axis="x")
        return ax.figure, ax

    def _draw_snapshots(self, ax: Any, spans: tuple[Span, ...], rows: list[Side], origin_s: float) -> None:
        judged = [span for span in spans if span.side == "validation" and span.step is not None]
        y_of = {side: y for y, side in enumerate(rows)}
        for span in judged[:: -(-len(judged) // _LABELS) or 1]:
            middle_s = (span.start_s + span.end_s) / 2 - origin_s
            ax.text(middle_s, y_of["validation"] + 0.33, f"{span.step}", ha="center", va="bottom", fontsize=7)
        taken = [span for span in spans if _is_snapshot(span)]
        if not taken:
            return
        y = y_of["training"]
        ax.plot([span.end_s - origin_s for span in taken], [y] * len(taken), "v", color="black", markersize=5)
        end_of = {span.step: span.end_s - origin_s for span in judged}  # the last one, if it was judged again
        for span in taken:
            if span.step in end_of:
                ends = {"xy": (end_of[span.step], y_of["validation"] + 0.3), "xytext": (span.end_s - origin_s, y)}
                ax.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": "grey", "linewidth": 0.8})


def _is_snapshot(span: Span) -> bool:
    return span.side == "training" and span.step is not None
