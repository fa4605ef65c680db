"""A profile's records, added up: what its tables and figures show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_gnnopt.analysis.recording.labels import PARTS, PHASES, Label
from lightning_gnnopt.analysis.records import BatchRecord, Records, SweepRecord, TensorRecord

OUTSIDE = "outside the layers"
"""How the forward and backward pass is called where it belongs to no layer."""


@dataclass(frozen=True)
class LayerTime:
    """Mean time of a layer in a timed step.

    Attributes:
        layer: Its name; `OUTSIDE` for what belongs to none.
        type: Its class, where that is known.
        kind_s: Seconds by kind (``"vertex"``, ``"edge"`` or ``""``) and phase (``"forward"`` or ``"backward"``).
        part_s: Seconds of the parts of its edge computation, forward and backward together.
        layers: How many layers this adds up.
    """

    layer: str
    type: str = ""
    kind_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    part_s: Mapping[str, float] = field(default_factory=dict)
    layers: int = 1

    @property
    def total_s(self) -> float:
        """Seconds of all of it."""
        return sum(self.kind_s.values())

    @property
    def edge_s(self) -> float:
        """Seconds of its edge computation."""
        return sum(self.part_s.values())


@dataclass(frozen=True)
class PlaceMemory:
    """Memory of a layer in a phase, or of a phase outside the layers; means over the recorded steps that entered it.

    Attributes:
        phase: The phase.
        layer: The layer's name, or ``""``.
        peak_bytes: Most bytes that a step held while in it, its batch not counted.
        live_bytes: Bytes by which what is held grew in it.
        allocated_bytes: Bytes that it allocated.
    """

    phase: str
    layer: str
    peak_bytes: float
    live_bytes: float
    allocated_bytes: float

    @property
    def name(self) -> str:
        """Phase and layer."""
        inner = self.layer or (OUTSIDE if self.phase in ("forward", "backward") else "")
        return f"{self.phase} {inner}".rstrip()


class Breakdown:
    """Means over the timed steps, and lists of what was measured.

    Args:
        records: What was recorded.

    Attributes:
        steps: Number of timed steps.
        step_s: Mean seconds of a step; 0 without timed steps.
        label_s: Mean seconds of a step by label, validation included.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        timed = {batch.batch: batch.step_s for batch in records.batches if batch.timed}
        self.steps = len(timed)
        self.step_s = sum(timed.values()) / len(timed) if timed else 0.0
        sums: dict[Label, float] = defaultdict(float)
        for row in records.times:
            if row.batch in timed:
                sums[Label(row.phase, row.layer, row.kind, row.part)] += row.seconds
        self.label_s = {label: seconds / len(timed) for label, seconds in sums.items()}
        self._rests = _rests(records.batches)

    @property
    def phase_s(self) -> dict[str, float]:
        """Mean seconds of each phase of a step that took time, in their order; without validation."""
        sums: dict[str, float] = defaultdict(float)
        for label, seconds in self.label_s.items():
            sums[label.phase] += seconds
        known = [*PHASES, *sorted(set(sums) - set(PHASES))]
        return {phase: sums[phase] for phase in known if phase != "validation" and sums.get(phase, 0.0) > 0}

    @property
    def layer_times(self) -> list[LayerTime]:
        """Layers that took time, in the order of the model, and what lies outside them, last."""
        kinds: dict[str, dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))
        parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for label, seconds in self.label_s.items():
            if label.phase not in ("forward", "backward"):
                continue
            kinds[label.layer][label.kind, label.phase] += seconds
            if label.layer and label.kind == "edge":
                parts[label.layer][label.part] += seconds
        types = {row.layer: row.type for row in self.records.layers}
        names = [name for name in dict.fromkeys([*types, *kinds]) if name and name in kinds] + [""]
        rows = [LayerTime(name or OUTSIDE, types.get(name, ""), dict(kinds[name]), dict(parts[name])) for name in names]
        return [row for row in rows if row.total_s > 0]

    @property
    def has_layers(self) -> bool:
        """Whether a layer took time."""
        return any(label.layer for label, s in self.label_s.items() if s > 0 and label.phase in ("forward", "backward"))

    @property
    def place_memory(self) -> list[PlaceMemory]:
        """Memory by phase, and by layer in the order in which the steps entered them."""
        steps: dict[tuple[str, str], dict[int, tuple[int, int, int]]] = defaultdict(dict)
        for row in self.records.memory:
            of_step = steps[row.phase, row.layer]
            peak, live, allocated = of_step.get(row.batch, (row.peak_bytes, 0, 0))
            of_step[row.batch] = (
                max(peak, row.peak_bytes),
                live + row.live_bytes,
                allocated + row.allocated_bytes,
            )
        # not by entry: with Lightning, the optimizer's step calls the forward pass
        order: dict[str, int] = {phase: place for place, phase in enumerate(PHASES)}
        return [
            PlaceMemory(phase, layer, *(sum(column) / len(of_step) for column in zip(*of_step.values(), strict=True)))
            for (phase, layer), of_step in sorted(steps.items(), key=lambda item: order.get(item[0][0], len(order)))
        ]

    @property
    def memory_steps(self) -> int:
        """Number of steps whose memory was recorded by label."""
        return len({row.batch for row in self.records.memory})

    @property
    def peaks_bytes(self) -> dict[tuple[str, int], list[int]]:
        """Peaks of measured steps, of sweeps too, batches included, by sampler and batch size; full batches last.

        The smaller last batch of an epoch is no sample of those: see :attr:`left_out`.
        """
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row in self.records.batches:
            if row.peak_bytes is not None and row.batch not in self._rests:
                groups[row.sampler, row.batch_size].append(row.peak_bytes + row.loaded_bytes)
        for peak in self.records.peaks:
            groups[peak.sampler, peak.batch_size].append(peak.peak_bytes + peak.loaded_bytes)
        return {key: groups[key] for key in sorted(groups, key=lambda key: (key[0] == "full", *key))}

    @property
    def left_out(self) -> int:
        """Number of measured steps that :attr:`peaks_bytes` leaves out, as an epoch ended with fewer seeds in them."""
        return sum(row.peak_bytes is not None and row.batch in self._rests for row in self.records.batches)

    @property
    def expansions(self) -> dict[int, float]:
        """By step: its peak, the batch included, over the bytes of the batch."""
        return {
            row.batch: (row.peak_bytes + row.loaded_bytes) / row.loaded_bytes
            for row in self.records.batches
            if row.peak_bytes is not None and row.loaded_bytes > 0
        }

    @property
    def tensors(self) -> list[TensorRecord]:
        """Tensors of the step that held most, the largest first."""
        sums: dict[int, int] = defaultdict(int)
        for row in self.records.tensors:
            sums[row.batch] += row.nbytes
        if not sums:
            return []
        largest = max(sums, key=lambda batch: (sums[batch], -batch))
        return sorted((row for row in self.records.tensors if row.batch == largest), key=lambda row: -row.nbytes)

    def sweep(self, name: str) -> list[SweepRecord]:
        """Points of one sweep, by value; full batches last."""
        rows = [row for row in self.records.sweeps if row.sweep == name]
        return sorted(rows, key=lambda row: (row.sampler == "full", row.value, row.sampler))


def _rests(batches: Sequence[BatchRecord]) -> frozenset[int]:
    """Find the steps with what an epoch had left: fewer seeds than the batch size, where most others have just as many.

    With samplers whose batches have any number of seeds there are none.
    """
    groups: dict[tuple[str, int], list[BatchRecord]] = defaultdict(list)
    for row in batches:
        groups[row.sampler, row.batch_size].append(row)
    short = [
        [row.batch for row in rows if row.seeds < size]
        for (_, size), rows in groups.items()
        if 2 * sum(row.seeds == size for row in rows) > len(rows)
    ]
    return frozenset(number for numbers in short for number in numbers)


def preparing_share(point: SweepRecord) -> float | None:
    """Share of sampling, slicing and transfer in the time of a batch; None if the point took no time."""
    before_s = point.sample_s + point.slice_s + point.transfer_s
    total_s = before_s + point.step_s
    return before_s / total_s if total_s > 0 else None


def largest_layers(rows: Iterable[LayerTime], most: int) -> list[LayerTime]:
    """Keep the rows that took most time, in their order, and add up the others as one."""
    rows = list(rows)
    if len(rows) <= most:
        return rows
    kept = {id(row) for row in sorted(rows, key=lambda row: -row.total_s)[:most]}
    others = [row for row in rows if id(row) not in kept]
    kinds: dict[tuple[str, str], float] = defaultdict(float)
    parts: dict[str, float] = defaultdict(float)
    for row in others:
        for key, seconds in row.kind_s.items():
            kinds[key] += seconds
        for part, seconds in row.part_s.items():
            parts[part] += seconds
    rest = LayerTime(f"and {len(others)} more", "", dict(kinds), dict(parts), len(others))
    return [*(row for row in rows if id(row) in kept), rest]


def part_names(rows: Iterable[LayerTime]) -> list[str]:
    """Parts that took time in any of the rows, in their order."""
    found = {part for row in rows for part, seconds in row.part_s.items() if seconds > 0}
    return [part for part in [*PARTS, *sorted(found - set(PARTS))] if part in found]
