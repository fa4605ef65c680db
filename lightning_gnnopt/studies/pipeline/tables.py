"""The tables of the study, made of its cells."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

from lightning_gnnopt.studies.cells import Cell
from lightning_gnnopt.studies.pipeline.theory import SIDES
from lightning_gnnopt.studies.thesis import MODELS

COMPARED = SIDES[1:]
"""The sides that are compared with the baseline."""
LEAST = 0.99
"""Speed-up below which a side counts as slower: what is nearer to 1 is noise."""
THESIS: Mapping[tuple[str, str], tuple[float, float, float]] = MappingProxyType(
    {("prefetch", "neighbor"): (0.62, 1.08, 1.51), ("prefetch", "cluster"): (1.08, 1.48, 1.82)}
)
"""Least, middle and largest speed-up that the thesis found, by side and sampler."""
THESIS_SLOWER = (4, 16)
"""How many of the thesis's cells prefetching made slower, of how many, with neighbour sampling."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side of one cell.

    Attributes:
        data: Name of the graph.
        model: Name of the model.
        sampler: Name of the sampler.
        batch_size: Seeds of a batch.
        hidden: Width of the hidden layers.
        side: One of `COMPARED`; ``""`` where the cell failed.
        baseline: What it is compared with.
        speedup: Of an epoch in a steady state, median of the rounds.
        theory: The largest one possible.
        effect: Their ratio.
        gain_share: Share of the possible gain that was measured; None where none is possible.
        workers: Threads that prepared the batches of training at the end: where a side that may prefetch has none, its
            loader has found that they do not pay.
        fit_speedup: Of a whole fit, the start-up of the validation process included.
        fit_theory: The largest one possible, without start-up.
        startup_s: Seconds from the first epoch's start to the first verdict; 0 without a validation process.
        epoch_s: Seconds of the baseline's epoch.
        pass_s: Seconds of the baseline's pass over training and validation nodes.
        fit_s: Seconds of the baseline's fit.
        prepare: Share of the epoch in which batches are prepared.
        validation: Share of the epoch that is validation.
        rounds: How often the side was run.
        losses_equal: Whether training and validation losses are the same bits on all sides with the same loader.
        other_cores: Cores that other processes kept busy meanwhile, at most.
        error: Why there are no numbers; ``""`` if there are.
    """

    data: str
    model: str
    sampler: str
    batch_size: int
    hidden: int
    side: str = ""
    baseline: str = ""
    speedup: float | None = None
    theory: float | None = None
    effect: float | None = None
    gain_share: float | None = None
    workers: int | None = None
    fit_speedup: float | None = None
    fit_theory: float | None = None
    startup_s: float | None = None
    epoch_s: float | None = None
    pass_s: float | None = None
    fit_s: float | None = None
    prepare: float | None = None
    validation: float | None = None
    rounds: int = 0
    losses_equal: bool | None = None
    other_cores: float | None = None
    error: str = ""

    @property
    def setting(self) -> tuple[str, str, str, int, int]:
        """What the rows of a cell have in common."""
        return (self.data, self.model, self.sampler, self.batch_size, self.hidden)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was found of one side with one sampler, over all cells.

    Attributes:
        side: One of `COMPARED`.
        sampler: The sampler.
        cells: Cells with numbers.
        least: The least speed-up of an epoch.
        median: The median.
        most: The largest.
        theory: Median of the theoretical ones.
        effect: Median of the parts of them that were measured.
        slower: Cells with a speed-up below 1.
        clearly_slower: Cells with one below `LEAST`.
        fit_median: Median speed-up of whole fits, start-up included.
        thesis: Least, middle and largest speed-up of the thesis; None where it has none.
    """

    side: str
    sampler: str
    cells: int
    least: float
    median: float
    most: float
    theory: float
    effect: float
    slower: int
    clearly_slower: int
    fit_median: float
    thesis: tuple[float, float, float] | None


def rows_of(cells: Iterable[Cell]) -> list[Row]:
    """List the sides of all cells, small graphs first; a failed cell has one row."""
    cells = list(cells)
    edges: dict[str, int] = {}
    for cell in cells:
        name = str(cell.config["data"])
        edges[name] = max(edges.get(name, 0), int(cell.result.get("graph", {}).get("edges", 0)))

    def place(cell: Cell) -> tuple[Any, ...]:
        config = cell.config
        data, model = str(config["data"]), str(config["model"])
        order = MODELS.index(model) if model in MODELS else len(MODELS)
        return (edges[data] or float("inf"), data, order, model, config["sampler"], bool(config["varied"]), cell.name)

    return [row for cell in sorted(cells, key=place) for row in _rows(cell)]


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Summarize by side and sampler, in the order of `COMPARED`."""
    found = []
    for side in COMPARED:
        for sampler in dict.fromkeys(row.sampler for row in rows):
            mine = [row for row in rows if (row.side, row.sampler) == (side, sampler)]
            if not mine:
                continue
            ratios = values(mine, "speedup")
            found.append(
                Summary(
                    side=side,
                    sampler=sampler,
                    cells=len(mine),
                    least=min(ratios),
                    median=statistics.median(ratios),
                    most=max(ratios),
                    theory=statistics.median(values(mine, "theory")),
                    effect=statistics.median(values(mine, "effect")),
                    slower=sum(ratio < 1 for ratio in ratios),
                    clearly_slower=sum(ratio < LEAST for ratio in ratios),
                    fit_median=statistics.median(values(mine, "fit_speedup")),
                    thesis=THESIS.get((side, sampler)),
                )
            )
    return found


def values(rows: Iterable[Row], column: str) -> list[float]:
    """Take a column's numbers, without those that are missing."""
    return [value for row in rows if (value := getattr(row, column)) is not None]


def to_csv(rows: Sequence[Row | Summary]) -> str:
    """Write rows with all their columns; lists have a cell for each entry, named after the column and a number."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if rows:
        writer.writerow(field.name for field in fields(rows[0]))
        for row in rows:
            cells = asdict(row).values()
            writer.writerow("/".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in cells)
    return out.getvalue()


def three(*numbers: float) -> str:
    """Write numbers beside each other, two digits each.

    Examples:
        >>> three(0.621, 1.08, 1.5)
        '0.62 / 1.08 / 1.50'
    """
    return " / ".join(f"{number:.2f}" for number in numbers)


def summary_markdown(summaries: Sequence[Summary]) -> str:
    """Write the summary for people."""
    lines = [
        "| side | sampler | cells | speed-up (min / median / max) | theory | effect | below 1 | below 0.99 | whole fit"
        " | thesis (min / middle / max) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summaries:
        lines.append(
            f"| {row.side} | {row.sampler} | {row.cells} | {three(row.least, row.median, row.most)} | {row.theory:.2f}"
            f" | {row.effect:.2f} | {row.slower} | {row.clearly_slower} | {row.fit_median:.2f}"
            f" | {'-' if row.thesis is None else three(*row.thesis)} |"
        )
    return "\n".join(lines) + "\n"


def cells_markdown(rows: Sequence[Row]) -> str:
    """Write a line for each cell for people: measured over theoretical speed-up of each side."""
    sides = " | ".join(f"{side} | of" for side in COMPARED)
    lines = [
        f"| graph | model | sampler | batch | hidden | epoch [s] | prepare [%] | validation [%] | {sides} | threads |"
        " fit: both | start [s] | losses | others [cores] |",
        "|---|---|---|---:|---:|" + "---:|" * (3 + 2 * len(COMPARED) + 3) + "---|---:|",
    ]
    for setting in dict.fromkeys(row.setting for row in rows):
        mine = {row.side: row for row in rows if row.setting == setting}
        first = next(iter(mine.values()))
        names = [str(part) for part in setting]
        if first.error:
            text = " ".join(first.error.split()).replace("|", r"\|")
            lines.append("| " + " | ".join([*names, text, *["-"] * (2 + 2 * len(COMPARED) + 5)]) + " |")
            continue
        numbers = [_number(first.epoch_s), _percent(first.prepare), _percent(first.validation)]
        for side in COMPARED:
            numbers += [_number(mine[side].speedup), _number(mine[side].theory)]
        both = mine["both"]
        numbers.append(f"{mine['prefetch'].workers}, {both.workers}")
        numbers += [_number(both.fit_speedup), _number(both.startup_s)]
        numbers += ["equal" if first.losses_equal else "DIFFER", _number(first.other_cores)]
        lines.append("| " + " | ".join([*names, *numbers]) + " |")
    return "\n".join(lines) + "\n"


def _rows(cell: Cell) -> list[Row]:
    names = ("data", "model", "sampler", "batch_size", "hidden")
    setting: dict[str, Any] = {name: cell.config[name] for name in names}
    if cell.error:
        return [Row(**setting, error=cell.error)]
    result = cell.result
    stages, baseline = result["stages"], result["sides"]["baseline"]
    seconds = {name: taken_s for name, taken_s in stages.items() if name.endswith("_s")}
    whole_s = sum(seconds.values())
    common = {
        "baseline": result["baseline"],
        "epoch_s": baseline["epoch_s"],
        "pass_s": result["pass_s"],
        "fit_s": baseline["fit_s"],
        "prepare": (seconds["train_prepare_s"] + seconds["val_prepare_s"]) / whole_s,
        "validation": (seconds["val_prepare_s"] + seconds["val_compute_s"]) / whole_s,
        "rounds": len(result["rounds"]),
        "losses_equal": result["losses_equal"] and result["val_losses_equal"],
        "other_cores": result["other_cores"],
    }
    columns = ("speedup", "theory", "effect", "gain_share", "fit_speedup", "fit_theory", "startup_s")
    return [
        Row(
            **setting,
            **common,
            side=side,
            workers=result["sides"][side]["workers"][0],
            **{name: result["sides"][side][name] for name in columns},
        )
        for side in COMPARED
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"
