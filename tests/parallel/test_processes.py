"""Ranks as processes over gloo compute what threads do, and what one process does with the whole graph."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gnnopt.parallel.sampled import sample_plan
from lightning_gnnopt.parallel.thread_channel import run_ranks
from lightning_gnnopt.sampling import NeighborSampler, Topology
from tests.parallel.part_ranks import FANOUTS, asked_by, assert_same_batch, attribute, hub_graph
from tests.parallel.part_ranks import N as HUB_NODES
from tests.parallel.process_ranks import CASES, STEPS, Steps, given, steps_on_part, steps_on_whole
from tests.parallel.ranks import graph, parts_of, plan_of
from tests.parallel.test_exact import N, owners

ROOT = Path(__file__).resolve().parents[2]
SIZES = (4, 2)
EXACT = [case for case in CASES if case.startswith(("exact", "sar"))]
BAR = 1e-10

Ranks = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each rank of four, and of two, has found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.parallel.process_ranks", str(folder), *map(str, SIZES)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {
        size: [torch.load(folder / str(size) / f"{rank}.pt", weights_only=False) for rank in range(size)]
        for size in SIZES
    }


def joined(steps: list[Steps], name: str) -> Tensor:
    """Outputs or gradients of all nodes, of each step: shape ``(STEPS, N, ...)``."""
    rows = torch.cat([torch.stack(getattr(one, name)) for one in steps], dim=1)
    return rows[:, torch.cat([one.nodes for one in steps]).argsort()]


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) / max(1.0, float(other.abs().max()))


def assert_same(got: list[Steps], expected: list[Steps]) -> None:
    for name in ("outs", "grads_x"):
        assert far(joined(got, name), joined(expected, name)) <= BAR, name
    for rank in got:  # the sums are on all ranks
        for grads, others in zip(rank.grads, expected[0].grads, strict=True):
            assert grads.keys() == others.keys()
            for name, grad in grads.items():
                assert far(grad, others[name]) <= BAR, name


@pytest.mark.slow
@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("size", SIZES)
def test_exact_policies_give_what_one_process_does(ranks: Ranks, size: int, case: str) -> None:
    """Outputs, gradients of features and of parameters, over steps of descent."""
    whole = steps_on_whole(case)
    assert_same([rank[case] for rank in ranks[size]], [whole])
    assert far(whole.outs[-1], whole.outs[0]) > 1e-4  # a step does something


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", SIZES)
def test_processes_give_and_send_what_threads_do(ranks: Ranks, size: int, case: str) -> None:
    net_x_loss = given(case)  # not in threads, which share the random numbers
    got, expected = (
        [rank[case] for rank in ranks[size]],
        run_ranks(size, lambda end: steps_on_part(end, case, net_x_loss)),
    )
    assert_same(got, expected)
    assert [(one.by_kind, one.exchanges) for one in got] == [(one.by_kind, one.exchanges) for one in expected]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in EXACT])
def test_the_others_do_not(ranks: Ranks, case: str) -> None:
    assert far(joined([rank[case] for rank in ranks[4]], "outs"), torch.stack(steps_on_whole(case).outs)) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "share", "row_bytes"), [("exact-sage", 1.0, 64), ("bns", 0.5, 64), ("stale", 1.0, 64)]
)
@pytest.mark.parametrize("size", SIZES)
def test_what_travels_is_what_the_plan_says(ranks: Ranks, size: int, case: str, share: float, row_bytes: int) -> None:
    """Two layers of eight float64 values, in each step."""
    for rank, part in enumerate(parts_of(graph(N), owners("random", size), size)):
        plan = sample_plan(plan_of(part), share, rank=rank, key=(0, 0))
        sizes = {"forward": sum(plan.send_counts), "backward": sum(plan.recv_counts)}
        found = ranks[size][rank][case].by_kind
        assert found == {kind: STEPS * 2 * rows * row_bytes for kind, rows in sizes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_processes_draw_the_same_rows(ranks: Ranks, size: int) -> None:
    drawn = [pair for rank in ranks[size] for pair in rank["drawn"]]
    assert all(torch.equal(came, expected) for came, expected in drawn)
    assert all(0 < int(expected.count_nonzero()) < len(expected) for _, expected in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["messages", "pairwise-messages"])
@pytest.mark.parametrize("size", SIZES)
def test_uneven_and_empty_messages_arrive(ranks: Ranks, size: int, way: str) -> None:
    for rank in ranks[size]:
        assert len(rank[way]) == 12
        for came, expected in rank[way]:
            assert (came.dtype, came.shape) == (expected.dtype, expected.shape)
            assert torch.equal(came, expected)
    sizes = {len(came) for rank in ranks[size] for came, _ in rank[way]}
    assert 0 in sizes
    assert len(sizes) > (2 if size > 2 else 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["exact-gat", "sar-max", "stale"])
@pytest.mark.parametrize("size", SIZES)
def test_pairs_of_messages_bring_the_same(ranks: Ranks, size: int, case: str) -> None:
    in_pairs, at_once = [rank["pairwise"][case] for rank in ranks[size]], [rank[case] for rank in ranks[size]]
    assert_same(in_pairs, at_once)
    assert [one.by_kind for one in in_pairs] == [one.by_kind for one in at_once]


@pytest.mark.parametrize("size", SIZES)
def test_batches_over_processes_are_those_of_one(ranks: Ranks, size: int) -> None:
    """From two threads of each process, in one order of exchanges."""
    whole = NeighborSampler(Topology.from_edge_index(hub_graph(), num_nodes=HUB_NODES), FANOUTS)
    for rank, found in enumerate(ranks[size]):
        asked = asked_by(rank, 9)
        assert len(found["over-parts"]) == len(asked)
        for one, (batch, rows) in zip(asked, found["over-parts"], strict=True):
            assert_same_batch(batch, one, whole)
            assert torch.equal(rows, attribute()[torch.as_tensor(batch.n_id)])
