"""The benchmark of parallel training: what it counts and compares, on a graph of a hundred nodes."""

from __future__ import annotations

import pytest

from benchmarks import parallel as module
from lightning_gnnopt.datasets import load_dataset


def test_bytes_are_as_predicted_and_exact_losses_as_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_dataset("dcsbm", num_nodes=120, num_classes=3, avg_degree=6.0)
    monkeypatch.setattr(module, "_load", lambda quick: (graph, 4))
    figures, rows = module.measure(quick=True)
    assert len(rows) == 2 * (2 + 2 * len(module.POLICIES))
    judged = [figure for figure in figures if figure.reach is not None]
    assert len(judged) == 8
    assert all(figure.met for figure in judged)
    by_case = {(row["model"], row["parts"], row["policy"]): row for row in rows}
    for net in ("sage", "gat"):
        exact = by_case[net, 4, "exact"]
        assert exact["sent MiB"] > by_case[net, 4, "Quantized(8)"]["sent MiB"] > 0
        assert exact["loss 1"] > exact["loss 4"]  # it learns
    one, four = (by_case["gat", parts, "SAR(0)"]["kept MiB, most"] for parts in (1, 4))
    assert four < one < by_case["gat", 1, "exact"]["kept MiB, most"]
