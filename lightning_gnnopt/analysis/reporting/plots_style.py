"""What the figures of a profile have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

# Okabe and Ito's colours, which people with any colour vision can tell apart, and two greys
BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
VERMILION, PURPLE, YELLOW, GREY, DARK = "#d55e00", "#cc79a7", "#f0e442", "#b0b0b0", "#6f6f6f"

PHASE_COLORS = {
    "wait": VERMILION,
    "transfer": ORANGE,
    "forward": BLUE,
    "backward": SKY,
    "optimizer": GREEN,
    "callbacks": DARK,
    "other": GREY,
}
STAGE_COLORS = {"sample": YELLOW, "slice": PURPLE, "transfer": ORANGE, "step": BLUE}
KIND_COLORS = {"vertex": GREEN, "edge": VERMILION, "": GREY}
PART_COLORS = {
    "gather": SKY,
    "message": VERMILION,
    "aggregate": BLUE,
    "update": GREEN,
    "fused": PURPLE,
    "edge_update": ORANGE,
    "normalize": YELLOW,
    "": GREY,
}
HATCH = "////"
"""Of what belongs to a backward pass."""


@dataclass(frozen=True)
class Drawing:
    """A kind of figure.

    Attributes:
        title: What it shows, in a few words.
        draw: Draws it: given the report and the axes, which may be None, returns the figure and its axes.
        has_data: Whether the report has what it needs.
        missing: What it needs, and how to record it.
        describe: Says what is to be seen, for those who cannot see it.
    """

    title: str
    draw: Callable[[BottleneckReport, Any], tuple[Any, Any]]
    has_data: Callable[[BottleneckReport], bool]
    missing: str
    describe: Callable[[BottleneckReport], str]

    def __call__(self, report: BottleneckReport, ax: Any = None) -> tuple[Any, Any]:
        """Draw it.

        Args:
            report: The report.
            ax: Matplotlib axes to draw on; a new figure by default.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If the report lacks what it needs.
        """
        if not self.has_data(report):
            raise ValueError(self.missing)
        try:
            import matplotlib.pyplot  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.",
                name="matplotlib",
            ) from error
        return self.draw(report, ax)


def axes(ax: Any, count: int = 1, *, size: tuple[float, float], columns: int | None = None) -> Any:
    """Take the axes that were given, or make a figure.

    Args:
        ax: What the caller was given.
        count: Axes that are needed.
        size: Width and height of a new figure, in inches.
        columns: Columns of a new figure with several axes; all in one row by default.

    Returns:
        The axes, for several an array of shape ``(count,)``.

    Raises:
        ValueError: If another number of axes was given.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        columns = columns or count
        _, made = plt.subplots(count // columns, columns, figsize=size, layout="constrained", squeeze=False)
        found = made.ravel()
    else:
        found = np.asarray(ax, dtype=object).ravel()
    if len(found) != count:
        raise ValueError(
            f"`ax` must be {'one' if count == 1 else count} axes, but got {len(found)}."
            f" HINT: {'plt.subplots()' if count == 1 else f'plt.subplots(1, {count})'}."
        )
    return found[0] if count == 1 else found


def bar_height(bars: int, entries: int = 0) -> float:
    """Height of a figure of horizontal bars with a legend beside them, in inches."""
    return max(0.9 + 0.34 * bars, 0.7 + 0.24 * entries, 1.6)


@dataclass(frozen=True)
class Series:
    """One colour of stacked bars.

    Attributes:
        name: Its name in the legend.
        values: A value for each bar.
        color: Its colour.
        hatch: Its hatching.
        alpha: How much of it covers the paper; less for a paler colour.
    """

    name: str
    values: Sequence[float]
    color: str
    hatch: str = ""
    alpha: float = 1.0


def stack(ax: Any, names: Sequence[str], series: Sequence[Series]) -> None:
    """Draw stacked horizontal bars, the first one on top, with the legend beside them."""
    places, left = np.arange(len(names)), np.zeros(len(names))
    for one in series:
        values = np.asarray(one.values, float)
        color = (*_rgb(one.color), one.alpha)
        ax.barh(
            places, values, 0.72, left=left, color=color, edgecolor=paper(), hatch=one.hatch, linewidth=0.6,
            label=plain(one.name),
        )  # fmt: skip
        left = left + values
    ax.set_yticks(places, [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    tidy(ax, "x")
    legend(ax)


def tidy(ax: Any, axis: str) -> None:
    """Take the box away and draw a faint grid along an axis."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=axis, color=ink(), alpha=0.18, linewidth=0.6)
    ax.set_axisbelow(True)


def legend(ax: Any) -> None:
    """Set the legend beside the axes, where it hides nothing."""
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small", handlelength=1.4)


def ink() -> str:
    """The colour of texts, as matplotlib is set up."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def paper() -> str:
    """The colour of what is drawn on, as matplotlib is set up."""
    import matplotlib as mpl

    return str(mpl.rcParams["axes.facecolor"])


def text_color(color: str) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = _rgb(color)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _rgb(color: str) -> tuple[float, float, float]:
    return int(color[1:3], 16) / 255, int(color[3:5], 16) / 255, int(color[5:7], 16) / 255


def plain(text: str, most: int = 34) -> str:
    """Shorten a name at its front, and keep matplotlib from reading it as mathematics."""
    text = " ".join(text.split(" "))
    if len(text) > most:
        text = "…" + text[1 - most :]
    return text.replace("$", r"\$")


def byte_unit(nbytes: float) -> tuple[float, str]:
    """Choose a unit of bytes for an axis.

    Returns:
        Its bytes and its name.
    """
    for unit, name in ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if nbytes >= unit:
            return unit, name
    return 1.0, "B"


def time_unit(seconds: float) -> tuple[float, str]:
    """Choose a unit of time for an axis.

    Returns:
        Its seconds and its name.
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 2 * unit:
            return unit, name
    return (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")
