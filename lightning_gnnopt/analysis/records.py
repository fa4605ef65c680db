"""What a profile consists of: plain tables, written to and read from CSV."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.analysis.record_files import read_csv, write_csv, write_parquet


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One training step.

    Attributes:
        batch: Number of the step in the profile, from 0.
        sampler: Name of the sampler or loader; ``"full"`` for full batches.
        batch_size: Seeds that were asked for in each batch.
        seeds: Seeds of the batch.
        nodes: Its nodes.
        edges: Its edges.
        loaded_bytes: Bytes of its tensors.
        step_s: Seconds from the request for the batch to the request for the next one, validation left out.
        peak_bytes: Most bytes that the step held beyond what was held when it began, the batch not counted; None where
            that was not measured.
        timed: Whether its times are those of a usual step: no warm-up, and no recording of memory slowed it.
    """

    batch: int
    sampler: str
    batch_size: int
    seeds: int
    nodes: int
    edges: int
    loaded_bytes: int
    step_s: float
    peak_bytes: int | None
    timed: bool


@dataclass(frozen=True, slots=True)
class TimeRecord:
    """Time of one step that belongs to one label.

    Those of a step add up to its `step_s`; `validation` comes on top.

    Attributes:
        batch: Number of the step.
        phase: See `labels.PHASES`.
        layer: Name of the layer; ``""`` outside all layers.
        kind: ``"vertex"``, ``"edge"`` or ``""``.
        part: See `labels.PARTS`.
        seconds: Time that passed on the device that computes.
        calls: How often it was entered.
    """

    batch: int
    phase: str
    layer: str
    kind: str
    part: str
    seconds: float
    calls: int


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """What preparing a batch took, wherever that happened.

    Attributes:
        batch: Number of the step that it was delivered to.
        sample_s: Seconds of sampling; None if the loader does not tell.
        slice_s: Seconds of slicing features and building the batch; None if the loader does not tell.
        transfer_s: Seconds on the device's copy stream.
        wait_s: Seconds that the training loop waited.
        beside: Whether it happened in other threads or processes, so that only `wait_s` holds up training.
        queued: Batches that were ready when it was asked for.
    """

    batch: int
    sample_s: float | None
    slice_s: float | None
    transfer_s: float
    wait_s: float
    beside: bool
    queued: float


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """Memory of one label in one step.

    Attributes:
        batch: Number of the step.
        phase: See `labels.PHASES`.
        layer: Name of the layer; ``""`` outside all layers.
        kind: ``"vertex"``, ``"edge"`` or ``""``.
        part: See `labels.PARTS`.
        peak_bytes: Most bytes that the step held while in it, beyond what was held when the step began.
        live_bytes: Bytes by which what is held grew in it (negative: it released more).
        allocated_bytes: Sum of the bytes it allocated.
    """

    batch: int
    phase: str
    layer: str
    kind: str
    part: str
    peak_bytes: int
    live_bytes: int
    allocated_bytes: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor that was alive when a step's tensors were at their peak.

    Attributes:
        batch: Number of the step.
        nbytes: Bytes of its storage.
        shape: Its shape when it was made, such as ``"100000x64"``.
        dtype: Its type, such as ``"float32"``.
        phase: Where it was made, as in `TimeRecord`.
        layer: The layer.
        kind: ``"vertex"``, ``"edge"`` or ``""``.
        part: The part of an edge computation.
        op: The operator that made it, such as ``"aten::index_select"``.
        line: Where in Python: ``"models/gat.py:31 in forward"``; for a backward pass, where its forward pass was run.
    """

    batch: int
    nbytes: int
    shape: str
    dtype: str
    phase: str
    layer: str
    kind: str
    part: str
    op: str
    line: str


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer of message passing.

    Attributes:
        layer: Its name, as in `named_modules`.
        type: Its class.
        parameters: Number of its parameters.
        calls: Calls in the profiled steps.
        fused: Calls of `propagate` that took the fused path.
        note: What is special about it (compiled, not timed, ...).
    """

    layer: str
    type: str
    parameters: int
    calls: int
    fused: int
    note: str


@dataclass(frozen=True, slots=True)
class ValidationRecord:
    """A validation within the fit.

    Attributes:
        batch: Number of training steps before it.
        seconds: What it took.
        beside: Whether it ran beside training (`AsyncValidation`).
    """

    batch: int
    seconds: float
    beside: bool


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """One point of a sweep over batch sizes or graphs; means over its batches, medians where it says so.

    Attributes:
        sweep: What was varied: ``"batch_size"``, ``"num_nodes"`` or ``"avg_degree"``.
        value: Its value; for a full batch the number of training nodes.
        sampler: Name of the sampler, ``"full"`` for the whole graph as one batch.
        graph_nodes: Nodes of the graph.
        graph_edges: Edges of the graph.
        batches: Batches that were run.
        nodes: Nodes of a batch.
        edges: Edges of a batch.
        sample_s: Seconds of sampling a batch, one after the other.
        slice_s: Seconds of slicing it.
        transfer_s: Seconds of moving it to the device.
        step_s: Seconds of the training step on it, median.
        loaded_bytes: Bytes of its tensors.
        peak_bytes: The largest peak of the steps beyond what was held before, the batch not counted.
        error: Why the point could not be run (out of memory, say); ``""`` if it was.
    """

    sweep: str
    value: float
    sampler: str
    graph_nodes: int
    graph_edges: int
    batches: int
    nodes: float
    edges: float
    sample_s: float
    slice_s: float
    transfer_s: float
    step_s: float
    loaded_bytes: float
    peak_bytes: int | None
    error: str


@dataclass(frozen=True, slots=True)
class PeakRecord:
    """Peak of a step of a sweep, which is no step of the fit.

    Attributes:
        sampler: Name of the sampler, ``"full"`` for the whole graph as one batch.
        batch_size: Seeds of the batch.
        peak_bytes: Most bytes that the step held beyond what was held when it began, the batch not counted.
        loaded_bytes: Bytes of the batch.
    """

    sampler: str
    batch_size: int
    peak_bytes: int
    loaded_bytes: int


@dataclass
class Records:
    """All that was recorded.

    Attributes:
        batches: Training steps.
        times: Their times, by label.
        loads: What preparing their batches took.
        memory: Their memory, by label, for some of them.
        tensors: The largest tensors at the peak, for a few of them.
        layers: Layers of message passing that were found.
        validations: Validations within the fit.
        sweeps: Points of sweeps over batch sizes and graphs.
        peaks: Peaks of their steps.
        info: What else is known, by name; see :data:`INFO`.
    """

    batches: list[BatchRecord] = field(default_factory=list)
    times: list[TimeRecord] = field(default_factory=list)
    loads: list[LoadRecord] = field(default_factory=list)
    memory: list[MemoryRecord] = field(default_factory=list)
    tensors: list[TensorRecord] = field(default_factory=list)
    layers: list[LayerRecord] = field(default_factory=list)
    validations: list[ValidationRecord] = field(default_factory=list)
    sweeps: list[SweepRecord] = field(default_factory=list)
    peaks: list[PeakRecord] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    def rows(self, table: str) -> list[Any]:
        """The rows of one table.

        Raises:
            ValueError: If there is no such table.
        """
        if table not in TABLES:
            raise ValueError(unknown_name("table", table, TABLES))
        rows: list[Any] = getattr(self, table)
        return rows

    def to_frame(self, table: str = "times") -> Any:
        """One table as a `pandas.DataFrame`, a column for each attribute of its rows, whether it has rows or not.

        Args:
            table: ``"batches"``, ``"times"``, ``"loads"``, ``"memory"``, ``"tensors"``, ``"layers"``,
                ``"validations"``, ``"sweeps"`` or ``"peaks"``.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
            ValueError: If there is no such table.
        """
        rows = self.rows(table)
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`to_frame` needs pandas, which is not installed. HINT: pip install 'lightning-gnnopt[frames]', or read"
                f" the rows of `records.{table}`.",
                name="pandas",
            ) from error
        names = [f.name for f in fields(TABLES[table])]
        return pd.DataFrame({name: [getattr(row, name) for row in rows] for name in names})

    def save(self, folder: Path | str) -> list[Path]:
        """Write each table that has rows as CSV, and `info.json`; with pyarrow each table as Parquet as well.

        Args:
            folder: Where; made if it is not there.

        Returns:
            The files.

        Raises:
            OSError: If the folder cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "info.json"]
        written[0].write_text(json.dumps(self.info, indent=2, default=str) + "\n", encoding="utf-8")
        for name, kind in TABLES.items():
            rows = self.rows(name)
            path = folder / f"{name}.csv"
            path.unlink(missing_ok=True)  # that of an earlier profile
            path.with_suffix(".parquet").unlink(missing_ok=True)
            if not rows:
                continue
            names = [f.name for f in fields(kind)]
            write_csv(rows, names, path)
            written.append(path)
            written += write_parquet(rows, names, path.with_suffix(".parquet"))
        return written

    @classmethod
    def load(cls, folder: Path | str) -> Records:
        """Read what :meth:`save` wrote, from its CSV files.

        Raises:
            FileNotFoundError: If there is no `info.json` in the folder.
            ValueError: If a file has other columns, or a cell cannot be read.
        """
        folder = Path(folder)
        records = cls(info=json.loads((folder / "info.json").read_text(encoding="utf-8")))
        for name, kind in TABLES.items():
            path = folder / f"{name}.csv"
            if path.exists():
                records.rows(name).extend(read_csv(path, kind))
        return records


TABLES: dict[str, type[Any]] = {
    "batches": BatchRecord,
    "times": TimeRecord,
    "loads": LoadRecord,
    "memory": MemoryRecord,
    "tensors": TensorRecord,
    "layers": LayerRecord,
    "validations": ValidationRecord,
    "sweeps": SweepRecord,
    "peaks": PeakRecord,
}
"""Class of the rows, by table."""

INFO = {
    "model": "class of the network, such as `GAT`",
    "dataset": "name of the graph, where it is known",
    "device": "device that computes, such as `cpu` or the name of a GPU",
    "environment": "what it ran on and with, by name",
    "fit_s": "seconds of the fit, or of the watched block",
    "between_s": "seconds of the fit before, between and after its epochs",
    "epochs": "epochs of the fit",
    "steps": "training steps of the fit, those that were not recorded included",
    "steps_per_epoch": "training steps of an epoch; None where that is not known",
    "num_workers": "workers of the loader; None where that is not known",
    "cores": "processor cores that the process may use",
    "static_bytes": "bytes of parameters, gradients and the optimizer's state",
    "beside_bytes": "bytes that the device held beside those and the batch: waiting batches, features; 0 if unknown",
    "limit_bytes": "bytes that a step may take, from `limit`; None if there is no limit",
    "overhead_s": "seconds that the profiler itself took in the timed steps",
    "async_validation": "whether `AsyncValidation` was there",
    "memory_control": "whether `MemoryControl` was there",
    "notes": "what could not be recorded, and why: a list of sentences",
}
"""What `Records.info` holds. Readers must expect each of these to be missing."""
