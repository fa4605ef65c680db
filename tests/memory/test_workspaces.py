"""Workspaces that grow in steps, have thresholds, and stop growing: never under."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch_geometric.data import Data

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.memory.cutting import cut_batch
from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.probe_batches import probe_batches
from lightning_gnnopt.memory.prober import StepProber
from lightning_gnnopt.memory.structure import BatchStructure, select
from lightning_gnnopt.memory.tape import AllocationTape, solve_tape
from lightning_gnnopt.memory.workspaces import bound_workspace, find_workspaces, with_common_workspaces
from tests.memory.runs import CLASSES, FEATURES, fit, make_datamodule

# Finding them


def test_a_probe_without_a_workspace_gets_one_of_no_bytes() -> None:
    streams = [np.array(s) for s in ([8, 5, -5, -8, 4], [9, -9, 4], [7, 3, -3, 2, -2, -7, 4])]
    common = with_common_workspaces(streams)
    # What is only around workspaces counts as one, with what is in it.
    assert [s.tolist() for s in common] == [[13, -13, 4], [9, -9, 4], [10, -10, 4]]


def test_blocks_with_other_events_between_stay() -> None:
    streams = [np.array(s) for s in ([8, 5, -5, 4, -8, -4], [9, 4, -9, -4])]
    common = with_common_workspaces(streams)
    assert [s.tolist() for s in common] == [[8, 5, -5, 4, -8, -4], [9, 0, 0, 4, -9, -4]]


def test_an_equal_block_beside_is_no_workspace() -> None:
    """In the second, the block that is released is the first one of 6 bytes, not the one before."""
    streams = [np.array(s) for s in ([6, 7, 2, -2, -6, 3, -7], [6, 6, -6, 3, -6], [6, 9, 4, -4, -6, 3, -9])]
    common = with_common_workspaces(streams)
    assert [s.tolist() for s in common] == [
        [6, 7, 2, -2, -6, 3, -7],
        [6, 6, 0, 0, -6, 3, -6],
        [6, 9, 4, -4, -6, 3, -9],
    ]


def test_streams_that_differ_in_more_are_left_as_they_are() -> None:
    streams = [np.array(s) for s in ([8, 5, -5, 4, -8], [8, 3])]
    assert [s.tolist() for s in with_common_workspaces(streams)] == [[8, 5, -5, 4, -8], [8, 3]]


def test_only_pairs_of_all_probes_are_workspaces() -> None:
    events = np.array([[8, 5, -5, -8, 3, -3], [8, 0, 0, -8, 4, -2]])
    assert find_workspaces(events).tolist() == [False, True, True, False, False, False]


# Bounding them

NAMES = ("nodes_0", "nodes_1", "nodes_2", "edges_1", "edges_2", "loops_1", "loops_2")
ROWS: dict[str, list[int]] = {"seeds": [0], "two hops": [0, 1], "nodes": [0, 1, 2], "edges": [3, 4]}


def blocked(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most 256 rows at once, in equal blocks."""
    return np.array([9_216 + 256 * math.ceil(m / math.ceil(m / 256)) for m in rows.tolist()], np.float64)


def stepwise(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """A step every 32 rows, up to 512."""
    return 25_728.0 + 8_192 * (np.ceil(np.minimum(rows, 512) / 32) - 1)


def with_threshold(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nothing below 26 rows."""
    return np.where(rows < 26, 0, stepwise(rows))


def around_a_block(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """A block of 32 bytes per row with a workspace in it."""
    return 32 * rows + with_threshold(rows)


def slowing(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of many threads: it does not stop before the probes do."""
    return 1_000.0 + np.minimum(640 * rows, 200_000 + 64 * rows)


SIZES: list[Callable[[NDArray[np.float64]], NDArray[np.float64]]] = [
    blocked,
    stepwise,
    with_threshold,
    around_a_block,
    slowing,
]


def counts_of_probes(generator: np.random.Generator) -> NDArray[np.float64]:
    small = generator.integers([9, 60, 150, 80, 200, 3, 3], [16, 130, 300, 140, 400, 30, 60], (8, 7))
    some, more = [[256 * k for k in range(first, first + 10, 2)] + [256, 256] for first in (3, 5)]
    return np.concatenate([small, [some, more]]).astype(np.float64)


def any_counts(generator: np.random.Generator) -> NDArray[np.float64]:
    """From a seed to thousands, hops independent of each other."""
    return np.ceil(10 ** generator.uniform(0, [2.5, 3.5, 4.5, 3.5, 4.5, 2, 2], (3000, 7)))


@pytest.mark.parametrize("rows_of", ROWS)
@pytest.mark.parametrize("sizes_of", SIZES)
def test_a_bound_from_large_probes_is_never_under(sizes_of: Any, rows_of: str) -> None:
    for seed in range(10):
        generator = np.random.default_rng(seed)
        probes, others = counts_of_probes(generator), any_counts(generator)
        sizes = sizes_of(probes[:, ROWS[rows_of]].sum(axis=1))
        bound = bound_workspace(np.column_stack([np.ones(len(probes)), probes]), sizes, NAMES)
        assert (bound >= 0).all()
        assert not bound[6:].any()
        actual = sizes_of(others[:, ROWS[rows_of]].sum(axis=1))
        assert (others @ bound[1:] + bound[0] >= actual - 1e-6).all()
        if sizes_of in (blocked, stepwise, with_threshold):
            most = {blocked: 9_216 + 256 * 256}.get(sizes_of, 25_728 + 15 * 8_192)
            assert bound.tolist() == [most, *[0] * 7]
        if sizes_of is around_a_block and rows_of == "seeds":  # small ones show the block alone
            assert bound.tolist() == [25_728 + 15 * 8_192, 32, *[0] * 6]


def test_small_probes_alone_are_not_under_themselves() -> None:
    generator = np.random.default_rng(0)
    probes = counts_of_probes(generator)[:8]
    sizes = stepwise(probes[:, :3].sum(axis=1))
    bound = bound_workspace(np.column_stack([np.ones(8), probes]), sizes, NAMES)
    assert (probes @ bound[1:] + bound[0] >= sizes).all()
    assert len(set(bound[1:4])) == 1  # found that it depends on all nodes
    assert not bound[4:].any()


# Those of oneDNN


class Recorder(Callback):
    """Solves the tape of a step, then records the step on cut batches and on a larger one."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int, int]] = []
        self.tape: AllocationTape | None = None
        self.most = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Data, batch_idx: int) -> None:
        prober = StepProber(trainer, pl_module, "train")
        reader = FeatureReader(batch, loops=True)
        (base,) = probe_batches(batch, 1, seed=5, loops=False)
        probes = probe_batches(base, len(reader.names) + 3, large=2)
        features = np.stack([reader(probe) for probe in probes])
        self.tape = solve_tape(prober.record(probes).streams["step"], features, reader.names)
        structure = BatchStructure.of_batch(batch)
        cut = [cut_batch(batch, select(structure, seeds=np.arange(num))) for num in (*range(1, 9), 16, 24)]
        cut += [*probe_batches(batch, 4, seed=7), batch, *probe_batches(batch, 2, seed=9, large=2)]
        streams = prober.record(cut).streams["step"]
        for one, stream in zip(cut, streams, strict=True):
            self.pairs.append((int(np.cumsum(stream).max()), self.tape.peak(reader(one)), one.batch_size))
        passing = (stream[:-1] > 0) & (stream[1:] == -stream[:-1])
        self.most = int(stream[:-1][passing].max(initial=0))


@pytest.mark.parametrize("hidden", [16, 64])
@pytest.mark.parametrize("name", ["sage", "gcn", "gat", "ggnn"])
def test_bf16_is_never_under(name: str, hidden: int) -> None:
    """Of batches of 1 to 32 seeds and of thousands: never under, and at most by one workspace above."""
    recorder = Recorder()
    module = NodeClassifier(name, in_channels=FEATURES, out_channels=CLASSES, hidden_channels=hidden, dropout=0.0)
    fit(
        module,
        make_datamodule(),
        recorder,
        precision="bf16-mixed",
        limit_train_batches=1,
        limit_val_batches=0,
        max_epochs=1,
    )
    assert len(recorder.pairs) == 17
    for measured, predicted, num_seeds in recorder.pairs:
        assert measured <= predicted <= measured + recorder.most, num_seeds
    measured, predicted, num_seeds = recorder.pairs[-1]
    assert num_seeds == 1280
    assert predicted <= 1.01 * measured
