"""What messages in chunks save and cost: steps on a full graph with `ChunkedPropagate` and without, in turn.

A step is a forward pass, a loss and a backward pass of two layers on the whole graph, on one device. Its peak is what
torch's allocator holds at most beyond what was there before, to the byte.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch_geometric.data import Data

from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios, run_benchmark
from lightning_gnnopt import ChunkedPropagate, NodeClassifier
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.studies.quiet import quiet

CHUNKS = (2, 4, 8, 16)
MIB = 2**20


def measure(quick: bool) -> Measured:
    """Measure steps of GraphSAGE and GAT.

    Args:
        quick: Whether to take a small synthetic graph and one round.
    """
    data, rounds = _load(quick), 1 if quick else 5
    rows: list[Mapping[str, Cell]] = []
    figures: list[Figure] = []
    for net in ("sage", "gat"):
        torch.manual_seed(0)
        module = NodeClassifier(
            net, in_channels=data.num_features, out_channels=int(data.y.max()) + 1, hidden_channels=64, dropout=0.0
        )
        sides: dict[str, Any] = {"whole": nullcontext}
        sides |= {str(chunks): partial(_chunks, module, chunks) for chunks in CHUNKS}
        with quiet():
            peaks = {name: _peak(module.net, data, inside()) for name, inside in sides.items()}
            runs = alternate(
                {name: partial(_seconds, module.net, data, inside) for name, inside in sides.items()}, rounds=rounds
            )
        for name in sides:
            slower = ratios(runs[name], runs["whole"])
            rows.append(
                {
                    "model": net,
                    "chunks": name,
                    "peak MiB": round(peaks[name] / MIB, 1),
                    "peak / whole": round(peaks[name] / peaks["whole"], 3),
                    "step s": round(median(runs[name]), 3),
                    "step / whole": round(median(slower), 3),
                }
            )
            if name != "whole":
                figures.append(Figure.of_runs(f"a step beside the whole one, {net}, {name} chunks", slower, unit="x"))
    return figures, rows


def _chunks(module: NodeClassifier, chunks: int) -> AbstractContextManager[Any]:
    return ChunkedPropagate(chunks, min_edges=0).on(module)


def _step(net: Any, data: Data) -> None:
    net.zero_grad()
    out = net(data.x, data.edge_index)
    torch.nn.functional.cross_entropy(out, data.y).backward()  # type: ignore[no-untyped-call]


def _peak(net: Any, data: Data, inside: AbstractContextManager[Any]) -> int:
    with inside:
        _step(net, data)  # gradients are there from then on
        with PeakMeter("cpu") as meter:
            _step(net, data)
    return int(meter.peak.allocated_bytes)


def _seconds(net: Any, data: Data, inside: Any) -> float:
    with inside():
        start_s = time.perf_counter()
        _step(net, data)
        return time.perf_counter() - start_s


def _load(quick: bool) -> Data:
    if quick:
        return load_dataset("dcsbm", num_nodes=600, num_classes=4, avg_degree=20.0)
    return load_dataset("amazon-computers", root=os.environ.get("GNNOPT_DATA"))


def main() -> int:
    """Run the benchmark."""
    return run_benchmark("chunked", measure, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
