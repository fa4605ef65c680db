"""A profile's records, boiled down to the numbers that its conclusions rest on."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_gnnopt.analysis.records import Records


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
        beside: Whether batches are prepared beside training.
        num_workers: Workers of the loader.
        cores: Processor cores there are.
        queued: Batches that were ready when one was asked for.
        fit_s: Seconds of the fit.
        fit_steps: Steps of the fit.
        validation_s: Seconds of the fit that validation took while training stood still.
        validations: Validations of the fit.
        async_validation: Whether validation ran beside training.
        loaded_bytes: Mean bytes of a batch.
        peaks_bytes: Each measured step's peak, its batch included, in the order of the steps.
        expansion: Mean over the measured steps of their peak, the batch included, over the bytes of the batch.
        static_bytes: Bytes of parameters, gradients and the optimizer's state.
        limit_bytes: Bytes that model and step may take together.
        over_limit: Share of the measured steps whose peak and `static_bytes` are above the limit together.
        excess_bytes: By how much those are above it, summed over them.
        edge_bytes: Bytes that an edge more adds to a step's peak, from a line through the measured steps; None with
            fewer than three steps of different numbers of edges, or where the line does not rise.
        measured_edges: Edges of the measured steps, summed.
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
    beside: bool = False
    num_workers: int | None = None
    cores: int | None = None
    queued: float | None = None
    fit_s: float | None = None
    fit_steps: int | None = None
    validation_s: float = 0.0
    validations: int = 0
    async_validation: bool = False
    loaded_bytes: float | None = None
    peaks_bytes: tuple[int, ...] = ()
    expansion: float | None = None
    static_bytes: int | None = None
    limit_bytes: int | None = None
    over_limit: float | None = None
    excess_bytes: int = 0
    edge_bytes: float | None = None
    measured_edges: int = 0
    memory_control: bool = False
    overhead: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_records(cls, records: Records) -> Facts:
        """Compute them; whatever is missing in the records is left at its default."""
        raise NotImplementedError
