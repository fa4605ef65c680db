"""The figure of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gnnopt.analysis.reporting.plots_style import (
    BLUE,
    DARK,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    axes,
    legend,
    plain,
    tidy,
)
from lightning_gnnopt.sweeping.overrides import show_value
from lightning_gnnopt.sweeping.tables import SummaryRow

if TYPE_CHECKING:
    from lightning_gnnopt.sweeping.report import SweepReport

_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, DARK)
_MARKERS = "osD^vPX"
_WIDE = 50.0  # the ratio of numbers from which their logarithms run along the axis
_SPREAD = 0.5  # of the room between two categories, for the series beside each other


def plot_sweep(report: SweepReport, ax: Any = None) -> tuple[Any, Any]:
    """Draw a sweep's metric by the overrides that vary: means, and bars of one standard deviation.

    One override runs along the axis, a number rather than a name. The others make series, each of a colour of its own;
    if there are more of them than colours, all points have the same.

    Args:
        report: The sweep.
        ax: Matplotlib axes to draw on; a new figure by default.

    Returns:
        The figure and the axes.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If no job has reached the metric.
    """
    rows = [row for row in report.summary if report.metric in row.metrics]
    if not rows:
        raise ValueError(
            f"A figure needs a job that has reached {'a metric' if report.metric is None else f'`{report.metric}`'},"
            " but there is none. HINT: the jobs' errors are in the table."
        )
    try:
        import matplotlib.pyplot  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.",
            name="matplotlib",
        ) from error
    varied = [key for key in report.groups if len({_label(row, [key]) for row in rows}) > 1]  # jobs may have failed
    numeric = [key for key in varied if all(_is_number(row.overrides.get(key)) for row in rows)]
    along = (numeric or varied or report.groups or [""])[0]
    others = [key for key in report.groups if key != along]
    series: dict[str, list[SummaryRow]] = {}
    for row in rows:
        series.setdefault(_label(row, others), []).append(row)
    if len(series) > len(_COLORS):
        series = {"": rows}
    ax = axes(ax, size=(6.4, 3.6))
    if along in numeric:
        _draw_lines(ax, series, along, str(report.metric))
    else:
        _draw_points(ax, series, along, str(report.metric))
    ax.set_xlabel(plain(along))
    averaged = f", mean over {', '.join(report.averaged)}" if report.averaged else ""
    ax.set_ylabel(plain(f"{report.metric}{averaged}", 60))
    tidy(ax, "y")
    if len(series) > 1:
        legend(ax)
        ax.get_legend().set_title(plain(", ".join(others)))
    return ax.figure, ax


def _draw_lines(ax: Any, series: dict[str, list[SummaryRow]], along: str, metric: str) -> None:
    for number, (label, rows) in enumerate(series.items()):
        rows = sorted(rows, key=lambda row: float(row.overrides[along]))
        _draw(ax, number, label, [float(row.overrides[along]) for row in rows], rows, metric, line="-")
    places = [float(row.overrides[along]) for rows in series.values() for row in rows]
    if min(places) > 0 and max(places) / min(places) >= _WIDE:
        ax.set_xscale("log")


def _draw_points(ax: Any, series: dict[str, list[SummaryRow]], along: str, metric: str) -> None:
    names = list(dict.fromkeys(_label(row, [along]) for rows in series.values() for row in rows))
    for number, (label, rows) in enumerate(series.items()):
        shift = _SPREAD * ((number + 0.5) / len(series) - 0.5)
        places = [names.index(_label(row, [along])) + shift for row in rows]
        _draw(ax, number, label, places, rows, metric, line="")
    ax.set_xticks(range(len(names)), [plain(name) for name in names], rotation=30 if len(names) > 6 else 0)
    ax.set_xlim(-0.5, len(names) - 0.5)


def _draw(
    ax: Any, number: int, label: str, places: Sequence[float], rows: Sequence[SummaryRow], metric: str, *, line: str
) -> None:
    stats = [row.metrics[metric] for row in rows]
    ax.errorbar(
        places, [stat.mean for stat in stats], yerr=[stat.std or 0.0 for stat in stats], label=plain(label),
        color=_COLORS[number], marker=_MARKERS[number], linestyle=line, capsize=3, markersize=5, linewidth=1.2,
    )  # fmt: skip


def _label(row: SummaryRow, keys: Sequence[str]) -> str:
    return ", ".join(show_value(row.overrides[key]) if key in row.overrides else "not set" for key in keys if key)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
