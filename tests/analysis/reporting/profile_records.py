"""Records of profiles that never were, with numbers that can be added up by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.records import (
    BatchRecord,
    LayerRecord,
    LoadRecord,
    MemoryRecord,
    Records,
    SweepRecord,
    TensorRecord,
    TimeRecord,
    ValidationRecord,
)
from lightning_gnnopt.analysis.reporting import report as report_module

MIB = 2**20
PHASE_MS = {"wait": 4.0, "transfer": 1.0, "optimizer": 2.0, "callbacks": 0.5, "other": 0.5}
"""Milliseconds of the phases that belong to no layer."""

LAYER_MS = {
    ("vertex", ""): 2.0,
    ("edge", "gather"): 1.0,
    ("edge", "message"): 3.0,
    ("edge", "aggregate"): 2.0,
    ("edge", "update"): 0.25,
    ("edge", "normalize"): 0.5,
}
"""Milliseconds of the first layer's forward pass; the backward pass takes twice that, each further layer one more."""

OUTSIDE_MS = {"forward": 1.0, "backward": 1.5}
"""Milliseconds of the loss, outside of all layers."""


def make_records(
    *,
    layers: Sequence[str] = ("conv1", "conv2"),
    steps: int = 8,
    beside: bool = True,
    sweeps: bool = True,
    warm_up: int = 2,
    **info: Any,
) -> Records:
    """A run in which every second step's memory was measured, and the times of the odd steps are 10 % longer.

    Args:
        layers: Names of the layers.
        steps: Steps, the first of which warm up and take ten times as long.
        beside: Whether the loader works beside training.
        sweeps: Whether there are sweeps.
        warm_up: Steps that warm up.
        **info: Further entries of `Records.info`, or other values for those there are.
    """
    records = Records(info={**_info(steps), **info})
    for batch in range(steps):
        _add_step(records, batch, layers, timed=batch >= warm_up, beside=beside)
        if batch % 2 == 0:
            _add_memory(records, batch, layers)
    records.layers = [LayerRecord(name, "GATConv", 1000 * (i + 1), steps, 0, "") for i, name in enumerate(layers)]
    records.tensors = [
        TensorRecord(
            batch,
            (12 - i) * MIB * (1 + batch),
            f"{1000 * (12 - i)}x{16 * (1 + batch)}",
            "float32",
            "forward",
            layers[i % len(layers)] if layers else "",
            ("edge", "vertex", "")[i % 3] if layers else "",
            ("message", "", "")[i % 3] if layers else "",
            "aten::index_select",
            f"model.py:{30 + i} in forward",
        )
        for batch in (0, 2)
        for i in range(8)
    ]
    records.validations = [ValidationRecord(steps // 2, 0.5, False), ValidationRecord(steps, 0.7, False)]
    if sweeps:
        records.sweeps = make_sweeps()
    return records


def make_facts(**changes: Any) -> Facts:
    """What the page reads of the facts of :func:`make_records`, written down."""
    measured = [(batch, 50 + 20 * batch) for batch in range(0, 8, 2)]
    numbers: dict[str, Any] = {
        "device": "cpu",
        "model": "GAT",
        "sample_s": 0.0084,
        "slice_s": 0.00315,
        "transfer_s": 0.00105,
        "beside": True,
        "num_workers": 1,
        "cores": 4,
        "queued": 0.5,
        "fit_s": 12.5,
        "validation_s": 1.2,
        "validations": 2,
        "loaded_bytes": 10.0 * MIB,
        "peaks_bytes": tuple((10 + peak) * MIB for _, peak in measured),
        "expansion": 12.0,
        "static_bytes": 3 * MIB,
        "limit_bytes": 203 * MIB,
        "over_limit": 0.0,
        "edge_bytes": 41943.04,
        "overhead": 0.012,
        "notes": ("The loader's workers are processes of their own: what they do was not timed.",),
    }
    return Facts(**numbers | changes)


ADVICE = (
    Advice(
        rule="waits_for_batches",
        finding="7.9% of a step waits for batches.",
        remedy="`num_workers` 1 -> 2 would hide it.",
        speedup=1.09,
    ),
    Advice(rule="edge_parts", finding="Edge computation is 79.6%: message dominates.", remedy=""),
)
VERDICT = "Edge computation is the bottleneck: 79.6% of a step, of which `message` takes 44.4%."


def make_report(
    records: Records | None = None,
    *,
    facts: Facts | None = None,
    advice: Sequence[Advice] = ADVICE,
    verdict: str = VERDICT,
    title: str | None = None,
) -> report_module.BottleneckReport:
    """A report whose facts, advice and verdict are those given, whatever the rules say."""
    with (
        mock.patch.object(report_module, "Facts", mock.Mock(from_records=lambda _: facts or make_facts())),
        mock.patch.object(report_module, "advise", return_value=list(advice)),
        mock.patch.object(report_module, "verdict", return_value=verdict),
    ):
        return report_module.BottleneckReport(records or make_records(), title=title)


def make_poor_report() -> report_module.BottleneckReport:
    """A report of nothing."""
    return make_report(Records(), facts=Facts(), advice=(), verdict="No step was timed.")


def scale_of(batch: int, warm_up: int = 2) -> float:
    """By what a step's times are longer than the plain ones."""
    return 10.0 if batch < warm_up else 1.1 if batch % 2 else 1.0


def _info(steps: int) -> dict[str, Any]:
    return {
        "model": "GAT",
        "dataset": "amazon-photo",
        "device": "cpu",
        "environment": {"processor": "A processor", "cores": 4, "torch": "2.9.0"},
        "fit_s": 12.5,
        "steps": steps,
        "steps_per_epoch": 4,
        "num_workers": 1,
        "cores": 4,
        "static_bytes": 3 * MIB,
        "limit_bytes": 203 * MIB,
        "overhead_s": 0.001,
        "async_validation": False,
        "memory_control": False,
        "notes": ["The loader's workers are processes of their own: what they do was not timed."],
    }


def _add_step(records: Records, batch: int, layers: Sequence[str], *, timed: bool, beside: bool) -> None:
    scale = scale_of(batch) / 1000
    rows = [TimeRecord(batch, phase, "", "", "", scale * value, 1) for phase, value in PHASE_MS.items()]
    rows += [TimeRecord(batch, phase, "", "", "", scale * value, 1) for phase, value in OUTSIDE_MS.items()]
    for place, layer in enumerate(layers):
        for (kind, part), value in LAYER_MS.items():
            for phase, factor in (("forward", 1), ("backward", 2)):
                seconds = scale * value * factor * (1 + place)
                rows.append(TimeRecord(batch, phase, layer, kind, part, seconds, 1))
    rows.append(TimeRecord(batch, "validation", "", "", "", 0.25 if batch == 3 else 0.0, 1))
    records.times += rows
    step_s = sum(row.seconds for row in rows if row.phase != "validation")
    peak = (50 + 20 * batch) * MIB if batch % 2 == 0 else None
    records.batches.append(
        BatchRecord(batch, "NeighborLoader", 512, 512, 4000 + batch, 20000 + 500 * batch, 10 * MIB, step_s, peak, timed)
    )
    records.loads.append(LoadRecord(batch, 8 * scale, 3 * scale, scale, 4 * scale, beside, 0.5))


def _add_memory(records: Records, batch: int, layers: Sequence[str]) -> None:
    unit = MIB * (1 + batch)
    rows = []
    for place, layer in enumerate(layers):
        rows += [
            MemoryRecord(batch, "forward", layer, "vertex", "", (2 + place) * unit, unit, 2 * unit),
            MemoryRecord(batch, "forward", layer, "edge", "message", (5 + place) * unit, 2 * unit, 6 * unit),
        ]
    for place, layer in reversed(list(enumerate(layers))):
        rows.append(MemoryRecord(batch, "backward", layer, "edge", "message", (6 + place) * unit, -3 * unit, 4 * unit))
    rows.append(MemoryRecord(batch, "optimizer", "", "", "", 4 * unit, 0, unit))
    records.memory += rows


def make_sweeps() -> list[SweepRecord]:
    """Batch sizes of two samplers against the full batch, one of which ran out of memory, and growing graphs."""
    rows = [
        SweepRecord("batch_size", float(size), sampler, 7650, 238162, 10, 6.0 * size, 20.0 * size, 2e-6 * size * slow,
                    1e-6 * size, 1e-6 * size, 1e-3 + 8e-6 * size, 4000.0 * size, 40000 * size, "")
        for sampler, slow in (("neighbor", 1), ("saint", 3))
        for size in (64, 256, 1024, 4096)
    ]  # fmt: skip
    rows.append(SweepRecord("batch_size", 6120.0, "full", 7650, 238162, 1, 7650, 238162, 0.0, 0.0, 0.002, 0.09, 3e7,
                            400 * MIB, ""))  # fmt: skip
    rows.append(SweepRecord("batch_size", 8192.0, "saint", 7650, 238162, 0, 0, 0, 0, 0, 0, 0, 0, None, "out of memory"))
    for power in range(12, 17):
        nodes = 2**power
        rows.append(SweepRecord("num_nodes", float(nodes), "neighbor", nodes, 16 * nodes, 10, 3000.0, 30000.0,
                                1e-3 * power, 2e-3, 1e-3, 0.02, 5e6, 60 * MIB, ""))  # fmt: skip
    for degree in (4, 8, 16, 32):
        edges = degree * 2**14
        rows.append(SweepRecord("avg_degree", float(degree), "neighbor", 2**14, edges, 10, 3000.0, 900.0 * degree,
                                1e-4 * degree, 2e-3, 1e-3, 1e-3 * degree, 5e6, 2 * degree * MIB, ""))  # fmt: skip
    return rows
