"""The sampling benchmarks on graphs of a thousand nodes: what they count, never how long it takes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import access, kernels, labor, peers, sampling, sides
from lightning_gnnopt.sampling import NeighborSampler, Topology

TINY = sampling.Scale(nodes=2**12, rounds=1, batches=1)


@pytest.fixture(scope="module")
def graph() -> Topology:
    return sampling.rmat(1024, 20)


def test_the_bound_reads_what_a_sampled_edge_must(graph: Topology) -> None:
    reads = access.RandomAccess(graph, 500, num_runs=2)
    reads._table[:] = np.arange(graph.num_nodes)
    for positions in reads._positions:
        expected = int(graph.indices[positions].sum())
        assert access._read(graph.indices, positions, reads._table) == expected
        assert access._read_ahead(graph.indices, positions, reads._table, reads._sources, 64) == expected
    assert not np.array_equal(*reads._positions)
    assert reads.best_distance() in access.DISTANCES
    assert reads.edges_per_s(64) > 0


def test_all_sides_get_the_same_seeds(graph: Topology) -> None:
    one, other = sides.SeedStream(graph, 3), sides.SeedStream(graph, 3)
    for number in range(2):
        for nodes, same in zip(one.run(number), other.run(number), strict=True):
            assert np.array_equal(nodes, same)
            assert (np.diff(graph.indptr)[nodes] > 0).all()
    assert not np.array_equal(one.run(0)[0], one.run(1)[0])


def test_two_threads_do_the_work_of_one(graph: Topology) -> None:
    sampler, seeds = NeighborSampler(graph, (5, 5)), sides.SeedStream(graph, 4)
    one, two = sides.our_side(sampler, seeds)(), sides.our_side(sampler, seeds, threads=2)()
    assert (one.batches, one.nodes, one.edges) == (two.batches, two.nodes, two.edges)
    assert one.batches == 4


def test_a_peer_is_given_the_seeds_and_fan_outs(graph: Topology) -> None:
    asked = []

    def sample(nodes: NDArray[Any], fanouts: Sequence[int]) -> tuple[int, int]:
        asked.append((len(nodes), tuple(fanouts)))
        return 7, 11

    run = sides.peer_side(sample, (3, 2), sides.SeedStream(graph, 2))()
    size = min(sides.BATCH_SIZE, int((np.diff(graph.indptr) > 0).sum()))
    assert asked == [(size, (3, 2))] * 2
    assert (run.batches, run.nodes, run.edges) == (2, 14, 22)


def test_a_peer_that_is_not_there_is_named_with_the_reason(graph: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    found, missing = peers.installed_peers(graph)
    assert found == {}
    assert missing["torch-sparse"] == "ModuleNotFoundError: No module named 'torch_sparse'"
    assert tuple(missing) == peers.PACKAGES


@pytest.mark.slow
def test_every_sampler_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "QUICK", TINY)
    monkeypatch.setattr(sampling, "installed_peers", lambda graph: ({}, {"pyg-lib": "not here"}))
    figures, rows = sampling.measure(quick=True)
    names = [figure.name for figure in figures]
    assert {"node-wise over the bound", "uniform over weighted", "time per edge at four times the edges"} <= {*names}
    nodes = next(figure for figure in figures if figure.name == "LABOR's nodes over node-wise's, R-MAT")
    assert 0 < nodes.value < 1
    assert {"graph": "-", "side": "pyg-lib", "note": "not measured: not here"} in rows
    measured = {str(row["side"]) for row in rows}
    for name in (
        "node-wise",
        "weighted",
        "temporal",
        "LABOR-1",
        "FastGCN",
        "LADIES",
        "ShaDow",
        "SAINT",
        "Cluster",
        "links",
        "two edge",
    ):
        assert any(side.startswith(name) for side in measured), name


def test_variants_of_a_pass_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = sampling.rmat(1024, 20)
    hop = kernels.Hop(graph, NeighborSampler(graph, sampling.DEEP), sides.SeedStream(graph, 1).run(0)[0], 3)
    room, cols = np.empty(kernels.FANOUT * graph.num_nodes, graph.position_dtype), np.empty_like(hop.sources)
    arguments = (graph.indptr, hop.frontier, kernels.FANOUT, hop.key, hop.colptr.copy(), room, cols)
    for ahead in (0, 16):
        for mask in (True, False):
            drawn = kernels._draw(*arguments, ahead, mask, True, False)
            assert np.array_equal(room[:drawn], hop.positions)
    out = np.empty_like(hop.sources)
    for ahead in (0, 64):
        kernels._read(graph.indices, hop.positions, out, ahead)
        assert np.array_equal(out, hop.sources)
    variants = kernels._numbers(graph)
    assert len({side(hop) for side in variants.values()}) == 1


@pytest.mark.slow
def test_labor_is_compared_at_equal_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labor, "GRAPHS", {"rmat": {"num_nodes": 2_048, "avg_degree": 30}})
    figures, rows = labor.measure(quick=True)
    accuracy, nodes = figures
    assert len(accuracy.runs) == 2
    assert accuracy.value == pytest.approx(sum(accuracy.runs) / 2)
    assert 0 < nodes.value < 1
    assert [row["side"] for row in rows] == ["node-wise", "LABOR"]
