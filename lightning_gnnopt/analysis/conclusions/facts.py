"""A profile's records, boiled down to the numbers that its conclusions rest on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_gnnopt.analysis.conclusions.breakdown import Breakdown
from lightning_gnnopt.analysis.records import BatchRecord, LoadRecord, Records


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Numbers of one profile; None, or an empty dict, where it does not tell.

    Times are means over the timed steps; shares lie between 0 and 1.

    Attributes:
        device: Device that computes.
        model: Class of the network.
        timed_steps: Steps that the times rest on.
        step_s: Seconds of a step, from one request for a batch to the next.
        phase_s: Seconds of each phase of a step, by name; without ``"validation"``. They add up to `step_s`.
        layer_s: Seconds of each layer, forward and backward, by its name; ``""`` is what lies outside all layers.
        kind_s: Seconds of ``"vertex"`` and ``"edge"`` computation, forward and backward, and of ``""``.
        part_s: Seconds of each part of the edge computations, forward and backward.
        sample_s: Seconds of sampling a batch, wherever it is done.
        slice_s: Seconds of slicing it.
        transfer_s: Seconds of moving it to the device: of the phase, or of the loader's copy stream if that is more.
        copy_s: Seconds of moving it on the loader's copy stream.
        beside: Whether batches are prepared beside training.
        num_workers: Workers of the loader.
        cores: Processor cores there are.
        queued: Batches that were ready when one was asked for; None of loaders that do not tell their stages either.
        fit_s: Seconds of the fit.
        fit_steps: Steps of the fit.
        between_s: Seconds of the fit before, between and after its epochs.
        epochs: Epochs of the fit.
        first_wait: Share of the waiting that was for the first batches of epochs; None with an epoch of one step.
        validation_s: Seconds of the fit that validation took while training stood still.
        validations: Validations of the fit.
        async_validation: Whether validation ran beside training.
        loaded_bytes: Mean bytes of a batch.
        peaks_bytes: Each measured step's peak, its batch included, in the order of the steps.
        expansion: Mean over the measured steps of their peak, the batch included, over the bytes of the batch.
        static_bytes: Bytes of parameters, gradients and the optimizer's state.
        beside_bytes: Bytes that the device held beside those and the batch, for waiting batches or features, say.
        limit_bytes: Bytes that model and step may take together.
        over_limit: Share of the measured steps whose peak and `fixed_bytes` are above the limit together.
        excess_bytes: By how much those are above it, summed over them.
        edge_bytes: Bytes that an edge more adds to a step's peak, its batch included, with all that comes with an edge:
            the slope of the line of least squares through the measured steps; None with fewer than three steps of
            different numbers of edges, or where the line does not rise.
        measured_edges: Edges of the measured steps, summed.
        closed: Modules with layers that cannot be looked into, compiled ones, say.
        alive_bytes: Bytes of the largest tensors at the peak of the step that held most of them, by where they were
            made: layer, if any, and part of its edge computation or ``"vertex"``, such as ``"convs.0 message"``, or the
            phase outside the layers.
        memory_control: Whether `MemoryControl` kept steps within the limit.
        overhead: The profiler's own share of the timed steps.
        notes: What could not be recorded, and why.
    """

    device: str = ""
    model: str = ""
    timed_steps: int = 0
    step_s: float | None = None
    phase_s: dict[str, float] = field(default_factory=dict)
    layer_s: dict[str, float] = field(default_factory=dict)
    kind_s: dict[str, float] = field(default_factory=dict)
    part_s: dict[str, float] = field(default_factory=dict)
    sample_s: float | None = None
    slice_s: float | None = None
    transfer_s: float | None = None
    copy_s: float | None = None
    beside: bool = False
    num_workers: int | None = None
    cores: int | None = None
    queued: float | None = None
    fit_s: float | None = None
    fit_steps: int | None = None
    between_s: float | None = None
    epochs: int | None = None
    first_wait: float | None = None
    validation_s: float = 0.0
    validations: int = 0
    async_validation: bool = False
    loaded_bytes: float | None = None
    peaks_bytes: tuple[int, ...] = ()
    expansion: float | None = None
    static_bytes: int | None = None
    beside_bytes: int = 0
    limit_bytes: int | None = None
    over_limit: float | None = None
    excess_bytes: int = 0
    edge_bytes: float | None = None
    measured_edges: int = 0
    closed: int = 0
    alive_bytes: dict[str, int] = field(default_factory=dict)
    memory_control: bool = False
    overhead: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def fixed_bytes(self) -> int:
        """What is held whatever the batch: `static_bytes` and `beside_bytes`."""
        return (self.static_bytes or 0) + self.beside_bytes

    @classmethod
    def from_records(cls, records: Records) -> Facts:
        """Compute them; whatever is missing in the records is left at its default."""
        info, sums = records.info, Breakdown(records)
        facts: dict[str, Any] = {
            "device": str(info.get("device") or ""),
            "model": str(info.get("model") or ""),
            "num_workers": info.get("num_workers"),
            "cores": _cores(info),
            "fit_s": info.get("fit_s"),
            "fit_steps": info.get("steps"),
            "between_s": info.get("between_s"),
            "epochs": info.get("epochs"),
            "static_bytes": info.get("static_bytes"),
            "beside_bytes": info.get("beside_bytes") or 0,
            "limit_bytes": info.get("limit_bytes"),
            "memory_control": bool(info.get("memory_control")),
            "beside": any(load.beside for load in records.loads),
            "validation_s": float(sum(row.seconds for row in records.validations if not row.beside)),
            "validations": len(records.validations),
            "async_validation": bool(info.get("async_validation")) or any(row.beside for row in records.validations),
            # a batch of a type that is not known counts 0 bytes
            "loaded_bytes": _mean(batch.loaded_bytes for batch in records.batches if batch.loaded_bytes > 0),
            "closed": sum(bool(layer.note) and layer.calls == 0 for layer in records.layers),
            "notes": tuple(info.get("notes") or ()),
        }
        if sums.steps:
            facts |= _times(records, sums)
        facts |= _memory(records, sums, (facts["static_bytes"] or 0) + facts["beside_bytes"], facts["limit_bytes"])
        return cls(**facts)


def _times(records: Records, sums: Breakdown) -> dict[str, Any]:
    """Say where the time of the timed steps went; there is at least one."""
    timed = {batch.batch for batch in records.batches if batch.timed}
    loads = [load for load in records.loads if load.batch in timed]
    telling = [load for load in loads if load.sample_s is not None or load.slice_s is not None]
    layers: dict[str, float] = defaultdict(float)
    kinds: dict[str, float] = defaultdict(float)
    parts: dict[str, float] = defaultdict(float)
    for label, seconds in sums.label_s.items():
        if label.phase in ("forward", "backward"):
            layers[label.layer] += seconds
            kinds[label.kind] += seconds
            if label.kind == "edge":
                parts[label.part] += seconds
    transfers = [sums.phase_s.get("transfer"), _mean(load.transfer_s for load in loads)]
    overhead_s, all_s = records.info.get("overhead_s"), sums.step_s * sums.steps
    return {
        "timed_steps": sums.steps,
        "step_s": sums.step_s,
        "phase_s": sums.phase_s,
        "layer_s": dict(layers),
        "kind_s": dict(kinds),
        "part_s": dict(parts),
        "sample_s": _mean(load.sample_s for load in loads if load.sample_s is not None),
        "slice_s": _mean(load.slice_s for load in loads if load.slice_s is not None),
        "transfer_s": max((seconds for seconds in transfers if seconds is not None), default=None),
        "copy_s": _mean(load.transfer_s for load in loads),
        "queued": _mean(load.queued for load in telling),
        "first_wait": _first_wait(loads, records.info.get("steps_per_epoch")),
        "overhead": overhead_s / all_s if overhead_s is not None and all_s > 0 else None,
    }


def _memory(records: Records, sums: Breakdown, fixed_bytes: int, limit_bytes: int | None) -> dict[str, Any]:
    """Say what the measured steps held."""
    measured = [batch for batch in records.batches if batch.peak_bytes is not None]
    peaks = [_peak(batch) for batch in measured]
    alive: dict[str, int] = defaultdict(int)
    for tensor in sums.tensors:
        place = f"{tensor.layer} {tensor.part or tensor.kind}".strip() if tensor.kind or tensor.layer else tensor.phase
        alive[place] += tensor.nbytes
    facts: dict[str, Any] = {
        "peaks_bytes": tuple(peaks),
        "expansion": _mean(sums.expansions.values()),
        "edge_bytes": _slope([batch.edges for batch in measured], peaks),
        "measured_edges": sum(batch.edges for batch in measured),
        "alive_bytes": dict(alive),
    }
    if limit_bytes is not None and peaks:
        over = [peak + fixed_bytes - limit_bytes for peak in peaks if peak + fixed_bytes > limit_bytes]
        facts |= {"over_limit": len(over) / len(peaks), "excess_bytes": sum(over)}
    return facts


def _first_wait(loads: Sequence[LoadRecord], steps_per_epoch: int | None) -> float | None:
    all_s = sum(load.wait_s for load in loads)
    if not steps_per_epoch or steps_per_epoch < 2 or all_s <= 0:
        return None
    return sum(load.wait_s for load in loads if load.batch % steps_per_epoch == 0) / all_s


def _peak(batch: BatchRecord) -> int:
    assert batch.peak_bytes is not None
    return batch.peak_bytes + batch.loaded_bytes


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _slope(x: Sequence[int], y: Sequence[int]) -> float | None:
    """Slope of the line of least squares; None with fewer than three different x, or if it does not rise."""
    if len(set(x)) < 3:
        return None
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    return slope if slope > 0 else None


def _cores(info: dict[str, Any]) -> int | None:
    found = info.get("cores")
    if found is None:
        found = (info.get("environment") or {}).get("cores")  # written as text there
    return None if found is None else int(found)
