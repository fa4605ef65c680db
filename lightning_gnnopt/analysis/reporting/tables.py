"""The tables of a profile, as the terminal and the page show them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.analysis.conclusions.breakdown import LayerTime, part_names, preparing_share
from lightning_gnnopt.analysis.reporting.plots_memory import limit_of_steps, shown_places
from lightning_gnnopt.analysis.reporting.plots_sweep import GRAPH_SWEEPS, peak_of
from lightning_gnnopt.analysis.reporting.plots_time import shown_edges, shown_layers

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

PHASE_MEANINGS = {
    "wait": "for the loader",
    "transfer": "the batch to the device",
    "forward": "the model and the loss",
    "backward": "their gradients",
    "optimizer": "the step of the optimizer",
    "callbacks": "of the Trainer",
    "other": "what lies between",
}
NONE = "-"
"""A cell of what is not known."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        name: Its name among the tables.
        title: What it shows, units included.
        columns: Heads of the columns; they may have two lines.
        rows: Its cells, row by row.
        texts: Columns that hold words; the others hold numbers.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: frozenset[int] = frozenset({0})


def phase_table(report: BottleneckReport) -> Table | None:
    """Phases of a step; None without timed steps."""
    found = report.breakdown
    if not found.phase_s:
        return None
    total_s = sum(found.phase_s.values())
    rows = [(name, PHASE_MEANINGS.get(name, ""), ms(s), share(s, total_s)) for name, s in found.phase_s.items()]
    rows.append(("a step", "together", ms(total_s), share(total_s, total_s)))
    title = f"Phases of a training step: means of {count(found.steps, 'timed step')}"
    return Table("phases", title, ("phase", "what", "ms", "share"), tuple(rows), frozenset({0, 1}))


def loading_table(report: BottleneckReport) -> Table | None:
    """What preparing a batch takes; None if the loader does not tell."""
    facts = report.facts
    # what training itself spends on it stands among the phases
    transfer_s = (facts.copy_s or None) if facts.beside else facts.transfer_s
    rows = {
        "sampling": None if facts.sample_s is None else f"{ms(facts.sample_s)} ms",
        "slicing": None if facts.slice_s is None else f"{ms(facts.slice_s)} ms",
        "transfer": None if transfer_s is None else f"{ms(transfer_s)} ms",
        "batches ready when asked for": None if facts.queued is None else f"{facts.queued:.1f}",
        "workers": None if facts.num_workers is None else f"{facts.num_workers:,}",
    }
    if facts.sample_s is None and facts.slice_s is None and not transfer_s:
        return None
    where = "beside training" if facts.beside else "while training waits"
    return _pairs("loading", f"Preparing a batch, {where}: means of a batch", rows)


def validation_table(report: BottleneckReport) -> Table | None:
    """Validations of the fit; None if there were none."""
    facts = report.facts
    if not facts.validations:
        return None
    rows = {
        "validations": f"{facts.validations:,}",
        "beside training": "yes" if facts.async_validation else "no",
        "time that training stood still": f"{facts.validation_s:,.3g} s",
        "share of the fit": share(facts.validation_s, facts.fit_s) if facts.fit_s else None,
    }
    return _pairs("validation", "Validation within the fit", rows)


def fit_table(report: BottleneckReport) -> Table | None:
    """What a fit consists of beside its steps; None if that is not known."""
    facts = report.facts
    if not facts.fit_s or facts.between_s is None:
        return None
    rows = {
        "seconds": f"{facts.fit_s:,.3g} s",
        "steps": f"{facts.fit_steps:,}" if facts.fit_steps is not None else None,
        "epochs": f"{facts.epochs:,}" if facts.epochs is not None else None,
        "before, between and after epochs": f"{facts.between_s:,.3g} s ({share(facts.between_s, facts.fit_s)})",
    }
    return _pairs("fit", "The fit", rows)


def layer_table(report: BottleneckReport, most: int) -> Table | None:
    """Vertex and edge computations of the layers; None if no layer was timed."""
    if not report.breakdown.has_layers:
        return None
    rows, step_s = shown_layers(report, most), report.breakdown.step_s
    kinds = [("vertex", "forward"), ("vertex", "backward"), ("edge", "forward"), ("edge", "backward")]
    other = any(row.kind_s.get(("", phase)) for row in rows for phase in ("forward", "backward"))
    heads = [*(f"{kind}\n{phase[0]}wd" for kind, phase in kinds), *(["other"] if other else [])]

    def cells(row: LayerTime) -> Iterable[str]:
        yield from (row.layer, row.type)
        yield from (_ms_or_none(row.kind_s.get(kind, 0.0)) for kind in kinds)
        if other:
            yield _ms_or_none(row.kind_s.get(("", "forward"), 0.0) + row.kind_s.get(("", "backward"), 0.0))
        yield from (ms(row.total_s), share(row.total_s, step_s))

    title = "Layers: ms of a step, in the forward (fwd) and the backward pass (bwd)"
    columns = ("layer", "type", *heads, "total", "of the\nstep")
    return Table("layers", title, columns, tuple(tuple(cells(row)) for row in rows), frozenset({0, 1}))


def part_table(report: BottleneckReport, most: int) -> Table | None:
    """Parts of the edge computations; None if there were none."""
    rows = shown_edges(report, most)
    if not rows:
        return None
    parts = part_names(rows)
    lines = [(row.layer, *(_ms_or_none(row.part_s.get(part, 0.0)) for part in parts), ms(row.edge_s)) for row in rows]
    sums = [sum(row.part_s.get(part, 0.0) for row in rows) for part in parts]
    if len(rows) > 1:
        lines.append(("all", *map(_ms_or_none, sums), ms(sum(sums))))
    lines.append(("share", *(share(s, sum(sums)) for s in sums), share(1.0, 1.0)))
    title = "Edge computations: ms of a step, forward and backward pass together"
    return Table("edge_parts", title, ("layer", *(part or "between" for part in parts), "total"), tuple(lines))


def memory_table(report: BottleneckReport) -> Table | None:
    """Memory of the steps; None if none was measured."""
    facts = report.facts
    if not facts.peaks_bytes:
        return None
    limit_bytes = limit_of_steps(report)
    rows = {
        "bytes of a batch, mean": _bytes(facts.loaded_bytes),
        "peak of a step with its batch, median": _bytes(statistics.median(facts.peaks_bytes)),
        "largest": _bytes(max(facts.peaks_bytes)),
        "memory expansion, mean": None if facts.expansion is None else f"{facts.expansion:,.2f}",
        "an edge more adds": None if facts.edge_bytes is None else f"{facts.edge_bytes:,.0f} B",
        "model, gradients, optimizer": _bytes(facts.static_bytes),
        "waiting batches, kept features": _bytes(facts.beside_bytes or None),
        "limit": _bytes(facts.limit_bytes),
        "limit, less these": _bytes(limit_bytes),
        "steps over the limit": None if facts.over_limit is None else share(facts.over_limit, 1),
    }
    return _pairs("memory", f"Memory of {count(len(facts.peaks_bytes), 'measured step')}", rows)


def peak_table(report: BottleneckReport) -> Table | None:
    """How peaks are distributed, by sampler and batch size; None if none was measured."""
    groups, limit_bytes = report.breakdown.peaks_bytes, limit_of_steps(report)
    if not groups:
        return None
    heads = ["sampler", "seeds", "steps", "smallest", "median", "largest"] + ["over"] * (limit_bytes is not None)
    rows = []
    for (sampler, size), peaks in groups.items():
        row = [sampler, f"{size:,}", f"{len(peaks):,}"]
        row += [format_bytes(value) for value in (min(peaks), statistics.median(peaks), max(peaks))]
        if limit_bytes is not None:
            row.append(share(sum(peak > limit_bytes for peak in peaks), len(peaks)))
        rows.append(tuple(row))
    title = "Peaks of the steps, with their batches"
    if report.breakdown.left_out:
        title += f", {count(report.breakdown.left_out, 'smaller last batch', 'smaller last batches')} left out"
    return Table("peaks", title, tuple(heads), tuple(rows))


def place_table(report: BottleneckReport, most: int) -> Table | None:
    """Memory by phase and layer; None if it was not recorded."""
    places, left_out = shown_places(report, most)
    if not places:
        return None
    rows = [
        (place.phase, place.layer, *map(_signed, (place.peak_bytes, place.live_bytes, place.allocated_bytes)))
        for place in places
    ]
    if left_out:
        rows.append((f"and {left_out} more", "", NONE, NONE, NONE))
    steps = count(report.breakdown.memory_steps, "step")
    title = f"Memory by phase and layer, without the batch: means of {steps}"
    columns = ("phase", "layer", "held at most", "growth", "allocated")
    return Table("places", title, columns, tuple(rows), frozenset({0, 1}))


def tensor_table(report: BottleneckReport, most: int) -> Table | None:
    """The largest tensors at the peak; None if they were not recorded."""
    tensors = report.breakdown.tensors
    if not tensors:
        return None
    rows = [
        (
            format_bytes(row.nbytes),
            f"{row.shape.replace('x', ' x ')} {row.dtype}",
            " ".join(word for word in (row.phase, row.layer, row.part or row.kind) if word),
            row.op.removeprefix("aten::"),
            row.line,
        )
        for row in tensors[:most]
    ]
    if len(tensors) > most:
        rest = format_bytes(sum(row.nbytes for row in tensors[most:]))
        rows.append((rest, f"and {len(tensors) - most} more", "", "", ""))
    title = f"The largest tensors at the peak of step {tensors[0].batch:,}"
    columns = ("size", "shape and type", "made in", "by", "line")
    return Table("tensors", title, columns, tuple(rows), frozenset({1, 2, 3, 4}))


def sweep_tables(report: BottleneckReport) -> list[Table]:
    """A table for each sweep there is."""
    varied = {"batch_size": "seeds of a batch"} | GRAPH_SWEEPS
    return [_sweep_table(report, name, head) for name, head in varied.items() if report.breakdown.sweep(name)]


def _sweep_table(report: BottleneckReport, name: str, head: str) -> Table:
    points = report.breakdown.sweep(name)
    failed = any(point.error for point in points)
    rows = []
    for point in points:
        row = [f"{point.value:,.6g}" if point.value < 1000 else f"{point.value:,.0f}", point.sampler]
        if point.error:
            row += [NONE] * 7
        else:
            before = preparing_share(point)
            row.append(f"{point.edges:,.0f}")
            row += [ms(s) for s in (point.sample_s, point.slice_s, point.transfer_s, point.step_s)]
            row += [NONE if before is None else share(before, 1), _bytes(peak_of(point)) or NONE]
        rows.append((*row, point.error) if failed else tuple(row))
    title = f"Sweep over {head}: ms of a batch; 'before' is the share of sampling, slicing and transfer"
    columns = (
        head.split()[0] if name != "avg_degree" else "degree",
        "sampler",
        "edges",
        "sample",
        "slice",
        "transfer",
        "step",
        "before",
        "peak",
    )
    return Table(name, title, columns + ("error",) * failed, tuple(rows), frozenset({1, 9}))


def environment_table(report: BottleneckReport) -> Table | None:
    """What the profile was taken on and of; None if nothing is known."""
    info = report.records.info
    rows: dict[str, str | None] = {
        "model": _text(info.get("model")),
        "dataset": _text(info.get("dataset")),
        "device": _text(info.get("device")),
        "steps of the fit": _number(info.get("steps")),
        "steps of an epoch": _number(info.get("steps_per_epoch")),
        "time of the fit": None if (fit_s := _number(info.get("fit_s"), ".4g")) is None else f"{fit_s} s",
    }
    found = info.get("environment")
    for name, value in found.items() if isinstance(found, Mapping) else ():
        if isinstance(value, Mapping):
            rows |= {f"{name}: {inner}": _text(text) for inner, text in value.items()}
        else:
            rows.setdefault(str(name), _text(value))
    return _pairs("environment", "Model, run and machine", rows)


def notes(report: BottleneckReport) -> list[str]:
    """What could not be recorded, and what is special about layers."""
    layers = [row for row in report.records.layers if row.note]
    by_note: dict[str, list[str]] = {}
    for row in layers:
        by_note.setdefault(row.note, []).append(row.layer or "the model")
    found = [f"{_listed(names)}: {note}" for note, names in by_note.items()]
    return list(dict.fromkeys([*report.facts.notes, *found]))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")


def ms(seconds: float) -> str:
    """Write seconds as milliseconds, in about three digits.

    Examples:
        >>> ms(0.25), ms(0.0125), ms(0.00125), ms(0.0000125)
        ('250', '12.5', '1.25', '0.013')
    """
    value = 1000 * seconds
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """Write a share in percent; of nothing there is none."""
    return f"{100 * part / whole:.1f} %" if whole > 0 else NONE


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number of things.

    Examples:
        >>> count(1, "step"), count(1200, "step"), count(2, "batch", "batches")
        ('1 step', '1,200 steps', '2 batches')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _ms_or_none(seconds: float) -> str:
    return ms(seconds) if seconds > 0 else NONE


def _bytes(nbytes: float | None) -> str | None:
    return None if nbytes is None else format_bytes(nbytes)


def _signed(nbytes: float) -> str:
    return f"-{format_bytes(-nbytes)}" if nbytes < 0 else format_bytes(nbytes)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _number(value: Any, form: str = ",") -> str | None:
    return f"{value:{form}}" if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _pairs(name: str, title: str, rows: Mapping[str, str | None]) -> Table | None:
    """A table of two columns, without the rows that are not known."""
    known = tuple((key, value) for key, value in rows.items() if value is not None)
    return Table(name, title, ("", ""), known, frozenset({0})) if known else None


def time_tables(report: BottleneckReport, most: int) -> list[Table]:
    """Tables of where the time goes, those there are."""
    return _found([phase_table(report), loading_table(report), layer_table(report, most), part_table(report, most),
                   fit_table(report), validation_table(report)])  # fmt: skip


def memory_tables(report: BottleneckReport, most: int) -> list[Table]:
    """Tables of where the memory goes, those there are."""
    return _found([memory_table(report), peak_table(report), place_table(report, most), tensor_table(report, most)])


def _found(tables: Iterable[Table | None]) -> list[Table]:
    return [table for table in tables if table is not None]
