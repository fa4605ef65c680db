"""The figures of a profile, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lightning_gnnopt.analysis.reporting import plots_memory, plots_sweep, plots_time
from lightning_gnnopt.analysis.reporting.plots_style import Drawing

KINDS: Mapping[str, Drawing] = MappingProxyType(
    {
        "phases": plots_time.PHASES,
        "layers": plots_time.LAYERS,
        "edge_parts": plots_time.EDGE_PARTS,
        "memory": plots_memory.MEMORY,
        "expansion": plots_memory.EXPANSION,
        "peaks": plots_memory.PEAKS,
        "tensors": plots_memory.TENSORS,
        "sampling_sweep": plots_sweep.SAMPLING_SWEEP,
        "graph_sweep": plots_sweep.GRAPH_SWEEP,
    }
)
"""Kinds of figures; each is called with a report and, optionally, axes: ``KINDS["phases"](report, ax)``.

``phases``: a training step, and what the loader does beside it. ``layers``: vertex and edge computations, forward
and backward. ``edge_parts``: parts of the edge computations. ``memory``: peak and growth by phase and layer.
``expansion``: peak over the bytes of the batch. ``peaks``: how peaks are distributed over batches. ``tensors``: the
largest at the peak. ``sampling_sweep``: batch sizes against the full batch (two axes). ``graph_sweep``: how sampling,
time and memory grow with the graph (three axes for each sweep).
"""
