from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv, SetTransformerAggregation

from lightning_gnnopt.memory.cuda_allocator import simulate
from lightning_gnnopt.memory.tape import AllocationTape, TapeError, solve_tape
from lightning_gnnopt.memory.tape_solving import reachable
from tests.memory.recording import NAMES, HopBatch, Net, peak_of, random_batch, record, training_step

CONVS: dict[str, Callable[[], list[nn.Module]]] = {
    "sage": lambda: [SAGEConv(20, 32), SAGEConv(32, 7)],
    "gcn": lambda: [GCNConv(20, 32), GCNConv(32, 7)],
    "gat": lambda: [GATConv(20, 8, heads=4), GATConv(32, 7)],
}
NODES_EDGES = np.array([[3, 8], [5, 2], [9, 11], [4, 20], [30, 41]])


def draw(seed: int, num: int, low: int, high: int) -> list[HopBatch]:
    generator = np.random.default_rng(seed)
    return [random_batch(generator, low, high) for _ in range(num)]


def rows(batches: list[HopBatch]) -> NDArray[np.float64]:
    return np.stack([batch.features for batch in batches])


def streams_of(events: Callable[[int, int], list[int]], features: NDArray[np.int64] = NODES_EDGES) -> list[NDArray]:
    return [np.array(events(*row), np.int64) for row in features.tolist()]


def sums_of(tape: AllocationTape, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums on each row of features, the 0 at the start included, shape ``(B, T + 1)``."""
    sizes = features @ tape.events[:, 1:].T + tape.events[:, 0]
    return np.cumsum(np.column_stack([np.zeros(len(features)), sizes]), axis=1)


# Real steps


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_real_steps_are_exact_on_larger_batches(name: str, trim: bool) -> None:
    torch.manual_seed(0)
    step = training_step(Net(CONVS[name](), trim=trim))
    probes, unseen = draw(0, 10, 10, 60), draw(1, 50, 100, 1500)
    tape = solve_tape(record(step, probes), rows(probes), NAMES)
    pieces = tape.pieces()
    for batch, stream in zip(unseen, record(step, unseen), strict=True):
        assert tape.peak(batch.features) == peak_of(stream)
        assert (pieces[:, 1:] @ batch.features + pieces[:, 0]).max() == peak_of(stream)
        assert tape.final(batch.features) == stream.sum()
        assert sum(size for _, size in tape.explain(batch.features)) == peak_of(stream)
    assert len(pieces) < 25
    assert tape.used_features == (NAMES[:5] if name == "sage" else NAMES)


def test_self_loops_that_are_not_counted_are_missed() -> None:
    probes = draw(0, 10, 10, 60)
    with pytest.raises(TapeError, match="a feature is missing, such as self loops") as caught:
        solve_tape(record(training_step(Net(CONVS["gat"]())), probes), rows(probes)[:, :5], NAMES[:5])
    assert caught.value.reason == "residual"


def test_boolean_mask_depends_on_the_data() -> None:
    probes = draw(0, 10, 10, 60)
    step = training_step(Net(CONVS["sage"](), mask=True))
    with pytest.raises(TapeError) as caught:
        solve_tape(record(step, probes), rows(probes), NAMES)
    assert caught.value.reason in ("structure", "residual")


def test_lstm_aggregation_depends_on_more_than_counts() -> None:
    # Even with its padded rows: oneDNN rounds an LSTM's workspace up to pages.
    probes = draw(0, 12, 10, 60)
    with pytest.raises(TapeError) as caught:
        solve_tape(record(training_step(Net([SAGEConv(20, 7, aggr="lstm")])), probes), rows(probes), NAMES)
    assert caught.value.reason in ("structure", "residual")


def test_aggregation_that_pads_needs_the_padded_rows() -> None:
    def padded_rows(batches: list[HopBatch]) -> NDArray[np.float64]:
        return np.array([[*batch.features, batch.padded, batch.padded / len(batch.x)] for batch in batches])

    torch.manual_seed(0)
    padding = SetTransformerAggregation(20, num_encoder_blocks=0, num_decoder_blocks=0)
    step = training_step(Net([SAGEConv(20, 7, aggr=padding)]))
    probes, unseen = draw(0, 12, 10, 60), draw(1, 50, 60, 300)
    streams = record(step, probes)
    with pytest.raises(TapeError) as caught:
        solve_tape(streams, rows(probes), NAMES)
    assert caught.value.reason == "residual"
    tape = solve_tape(streams, padded_rows(probes), (*NAMES, "padded", "max_degree"))
    assert {"padded", "max_degree"} <= set(tape.used_features)
    for features, stream in zip(padded_rows(unseen), record(step, unseen), strict=True):
        assert tape.peak(features) == peak_of(stream)


# Solving


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_affine_sizes_are_found(data: st.DataObject) -> None:
    num_features = data.draw(st.integers(1, 6))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    features = generator.integers(1, 500, (num_features + 4, num_features))
    events = generator.integers(0, 2**20, (12, num_features + 1)) >> generator.integers(0, 20, (12, 1))
    events = (events + np.eye(1, num_features + 1, dtype=np.int64)) * generator.choice([-1, 1], (12, 1))
    sizes = features @ events[:, 1:].T + events[:, 0]
    tape = solve_tape(list(sizes), features, [f"edges_{number}" for number in range(num_features)])
    np.testing.assert_array_equal(tape.events, events)
    np.testing.assert_array_equal(tape.signs, np.sign(sizes[0]))


def test_eighths_of_a_byte_are_found() -> None:
    features = NODES_EDGES * 8
    tape = solve_tape(streams_of(lambda n, e: [n // 8, 3 * e // 8 + 5], features), features, ["nodes_0", "edges_1"])
    np.testing.assert_array_equal(tape.events, [[0, 0.125, 0], [5, 0, 0.375]])


def test_large_weights_beside_small_batches() -> None:
    weights = 40_000_000_004
    tape = solve_tape(streams_of(lambda n, e: [weights + 4 * n, 8 * e + 1]), NODES_EDGES, ["nodes_0", "edges_1"])
    np.testing.assert_array_equal(tape.events, [[weights, 4, 0], [1, 0, 8]])


def test_unused_features_are_told() -> None:
    tape = solve_tape(streams_of(lambda n, e: [8 * e, -8 * e, 100]), NODES_EDGES, ["nodes_0", "edges_1"])
    assert tape.used_features == ("edges_1",)


@pytest.mark.parametrize(
    ("events", "reason", "event", "message"),
    [
        (lambda n, e: [n, e, 4] if n < 9 else [n, e], "structure", 2, "2 to 3 events, and event 2 is not"),
        (lambda n, e: [n, e - 10], "structure", 1, "2 to 2 events, and event 1 is not"),
        (lambda n, e: [n, 8 * max(n, e)], "residual", 1, "event 1 of 2, 40 to 328 bytes, is not"),
        (lambda n, e: [n, -(-n // 8)], "residual", 1, "event 1 of 2, 1 to 4 bytes"),
        (lambda n, e: [n, n * e], "residual", 1, "affine function of nodes_0, edges_1"),
        (lambda n, e: [n, 8 * e + 64 * (e > 40)], "holdout", 1, "event 1 has 392 bytes instead of 328"),
    ],
)
def test_what_cannot_be_solved_is_told(
    events: Callable[[int, int], list[int]], reason: str, event: int, message: str
) -> None:
    with pytest.raises(TapeError, match=message) as caught:
        solve_tape(streams_of(events), NODES_EDGES, ["nodes_0", "edges_1"])
    assert (caught.value.reason, caught.value.event) == (reason, event)


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        ([[1, 7], [2, 7], [3, 7], [5, 7], [90, 8]], ("edges_2",), "edges_2: always the same"),
        ([[1, 0], [2, 0], [3, 0], [5, 0], [90, 0]], ("edges_2",), "edges_2: always 0"),
        ([[1, 4], [2, 5], [3, 6], [5, 8], [90, 9]], ("edges_1", "edges_2"), "edges_1, edges_2: not independent"),
        ([[1, 2], [2, 4], [90, 3]], ("nodes_0", "edges_1", "edges_2"), "3 features need at least 5 probes"),
    ],
)
def test_probes_that_cannot_tell_features_apart(columns: list[list[int]], names: tuple[str], message: str) -> None:
    features = np.column_stack([[4, 2, 11, 7, 500][: len(columns)], columns])
    with pytest.raises(TapeError, match=message) as caught:
        solve_tape([np.array([row.sum()]) for row in features], features, ["nodes_0", "edges_1", "edges_2"])
    assert caught.value.reason == "rank"
    assert caught.value.columns == names


def test_nearly_collinear_features_are_no_error() -> None:
    generator = np.random.default_rng(0)
    nodes = generator.integers(10_000, 100_000, 10)
    features = np.column_stack([nodes, nodes + generator.integers(0, 3, 10)])  # almost trees
    streams = [np.array([400 * n + 12 * e + 7]) for n, e in features]
    np.testing.assert_array_equal(solve_tape(streams, features, ["nodes_1", "edges_1"]).events, [[7, 400, 12]])


def test_absent_features_stay_out() -> None:
    features = np.column_stack([NODES_EDGES, np.zeros(5)])
    names = ["nodes_0", "edges_1", "loops_1"]
    streams = streams_of(lambda n, e: [8 * n, 4 * e])
    tape = solve_tape(streams, features, names, absent=("loops_1",))
    np.testing.assert_array_equal(tape.events, [[0, 8, 0, 0], [0, 0, 4, 0]])
    assert tape.peak([1, 1, 0]) == 12
    with pytest.raises(ValueError, match="loops_1 must be 0, as it was when the tape was made"):
        tape.peak([1, 1, 1])
    with pytest.raises(ValueError, match="must be 0 in all probes, but nodes_0 is not"):
        solve_tape(streams, features, names, absent=("loops_1", "nodes_0"))
    with pytest.raises(ValueError, match="`absent` must name features, but got loops_2"):
        solve_tape(streams, features, names, absent=("loops_2",))


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`features` must have a row .* \(5, 1\), but its shape is \(5, 2\)"):
        solve_tape(streams_of(lambda n, e: [n]), NODES_EDGES, ["nodes_0"])
    with pytest.raises(ValueError, match="`round_to` must be at least 1 byte, but got 0"):
        AllocationTape([[1, 2]], signs=[1], names=["nodes_0"], round_to=0)
    with pytest.raises(ValueError, match=r"its shape is \(1, 2\), and there are 1 signs"):
        AllocationTape([[1, 2]], signs=[1], names=["nodes_0", "edges_1"])


# Pieces


def is_ever_largest(row: int, functions: NDArray[np.float64], upper: NDArray[np.float64]) -> bool:
    """Linear programming's word: is there a place where `row` is above all others by more than a little?"""
    others = np.delete(functions, row, axis=0)
    coefficients = np.column_stack([others[:, 1:] - functions[row, 1:], np.ones(len(others))])
    bounds = [*((0, bound) for bound in upper), (None, 1)]
    result = linprog([0] * len(upper) + [-1], coefficients, functions[row, 0] - others[:, 0], bounds=bounds)
    return bool(-result.fun > 1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 4), st.booleans())
def test_reachable_rows_are_those_of_linear_programming(seed: int, num: int, width: int, bounded: bool) -> None:
    generator = np.random.default_rng(seed)
    functions = np.unique(generator.integers(0, 10, (num, width + 1)).astype(float), axis=0)
    upper = generator.integers(1, 9, width).astype(float) if bounded else np.full(width, np.inf)
    expected = [row for row in range(len(functions)) if len(functions) == 1 or is_ever_largest(row, functions, upper)]
    kept = reachable(functions, upper)
    assert set(expected) <= set(kept.tolist())
    corners = generator.uniform(0, 9, (500, width)).clip(max=upper)
    values = corners @ functions[:, 1:].T + functions[:, 0]
    np.testing.assert_array_equal(values[:, kept].max(axis=1), values.max(axis=1))
    for row in set(kept.tolist()) - set(expected):  # may stay only where it ties with the others
        assert not is_ever_largest(row, functions[np.union1d(expected, row)], upper)


def test_row_below_two_others_together_is_left_out() -> None:
    functions = np.array([[0.0, 4, 0], [0, 0, 4], [0, 1.9, 1.9], [0, 2.1, 2.1], [1, 1, 1]])
    assert reachable(functions).tolist() == [0, 1, 3, 4]
    assert reachable(functions, np.array([10.0, 0.0])).tolist() == [0, 4]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 512]))
def test_pieces_of_any_tape(seed: int, round_to: int) -> None:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, 2000, (30, 4)) * (generator.random((30, 4)) < 0.5) + [1, 0, 0, 0]
    order = generator.permutation(60)
    events, signs = np.zeros((60, 4)), np.zeros(60)
    for block, places in enumerate(np.sort(order.reshape(30, 2), axis=1)):
        events[places], signs[places] = [sizes[block], -sizes[block]], [1, -1]
    tape = AllocationTape(events, signs=signs, names=["nodes_0", "nodes_1", "edges_1"], round_to=round_to)
    pieces = tape.pieces()
    assert pieces[0].tolist() == [0, 0, 0, 0]
    features = generator.integers(0, 10 ** generator.integers(1, 6, (200, 1)), (200, 3)).astype(float)
    exact = sums_of(tape, features).max(axis=1)
    bounds = (features @ pieces[:, 1:].T + pieces[:, 0]).max(axis=1)
    peaks = np.array([tape.peak(row) for row in features])
    if round_to == 1:
        np.testing.assert_array_equal(bounds, exact)
        np.testing.assert_array_equal(peaks, exact)
    else:
        each = np.ceil((features @ np.abs(events[:, 1:]).T + np.abs(events[:, 0])) / 512) * 512 * signs
        np.testing.assert_array_equal(peaks, np.cumsum(each, axis=1).max(axis=1))
        assert (peaks <= bounds).all()
        assert (bounds <= exact + 30 * 511).all()


def test_bounded_features_need_fewer_pieces() -> None:
    tape = AllocationTape(
        [[1000, 0], [-1000, 0], [0, 8]], signs=[1, -1, 1], names=["nodes_0"]
    )  # the second block is the larger one from 125 nodes on
    assert tape.pieces().tolist() == [[0, 0], [1000, 0], [0, 8]]
    assert tape.pieces(upper=[100]).tolist() == [[0, 0], [1000, 0]]


def test_rounding_adds_only_what_it_can() -> None:
    tape = AllocationTape(
        [[0, 512], [0, 128], [1000, 0], [0, 3], [0, -512], [-300, 0]],
        signs=[1, 1, 1, 1, -1, -1],
        names=["nodes_0"],
        round_to=512,
    )
    # Full lines: none; 128 bytes a node: 384; 1000 bytes are 1024; 3 bytes a node: 511.
    assert tape.pieces().tolist()[-1] == [384 + 1024 + 511, 512 + 128 + 3]
    assert tape.peak([1]) == 512 + 512 + 1024 + 512
    assert tape.final([1]) == 512 + 1024 + 512 - 512


# What makes the peak


def test_explanation_names_the_live_blocks() -> None:
    # A gradient of before goes first; a and b are open at the peak; c reuses a's size and is closed before it.
    tape = solve_tape(
        streams_of(lambda n, e: [-40, 8 * n, 8 * n, -8 * n, 4 * e + 2 * n + 16, -8 * n, 8]),
        NODES_EDGES,
        ["nodes_0", "edges_1"],
    )
    assert tape.peak([10, 1000]) == 80 + 4036 - 40
    assert tape.explain([10, 1000], list("gacCbAd")) == [("b", 4036), ("a", 80), ("g", -40)]
    assert [label for label, _ in tape.explain([10, 1000])] == [
        "allocation 4: 2 x nodes_0 + 4 x edges_1 + 16",
        "allocation 1: 8 x nodes_0",
        "release of a block from before, 0: 40",
    ]
    with pytest.raises(ValueError, match="`labels` must have one for each of 7 events, but has 2"):
        tape.explain([10, 1000], ["a", "b"])


def test_no_growth_is_explained_by_nothing() -> None:
    tape = AllocationTape([[-100, 0], [50, 0]], signs=[-1, 1], names=["nodes_0"])
    assert tape.peak([3]) == 0
    assert tape.final([3]) == -50
    assert tape.explain([3]) == []
    assert tape.pieces().tolist() == [[0, 0]]


def test_edges_without_self_loops_are_an_allocation() -> None:
    # Coefficients of both signs that sum to 0: only the recorded sign tells an allocation from a release.
    events = [[0, 8, -8], [0, -8, 8]]
    tape = AllocationTape(events, signs=[1, -1], names=["edges_1", "loops_1"])
    assert tape.explain([10, 4]) == [("allocation 0: 8 x edges_1 - 8 x loops_1", 48)]
    assert tape.trace([10, 4]) == [(0, 48), (0, -48)]


def test_trace_of_steps_in_a_row() -> None:
    # Releases a gradient of the step before, leaves one behind.
    tape = AllocationTape(
        [[-1000, 0], [0, 600], [1000, 0], [0, -600]], signs=[-1, 1, 1, -1], names=["nodes_0"], round_to=512
    )
    trace = tape.trace([[10], [20]])
    assert [size for _, size in trace] == [1000, -1000, 6000, 1000, -6000, -1000, 12000, 1000, -12000]
    first, _, batch, second, end = (block for block, _ in trace[:5])
    assert (end, trace[1][0], trace[5][0]) == (batch, first, second)
    result = simulate(trace, expandable_segments=True)
    assert result.peak_allocated_bytes == 1024 + tape.peak([20])
    assert result.allocated_bytes == 1024


def test_real_tape_runs_through_the_allocator() -> None:
    probes, unseen = draw(0, 10, 10, 60), draw(1, 20, 500, 1500)
    streams = record(training_step(Net(CONVS["gcn"]())), probes)
    tape = solve_tape(streams, rows(probes), NAMES, round_to=512)
    for batch in unseen:
        trace = tape.trace(batch.features)
        held_before: dict[int, int] = {}
        for block, size in trace[: len(trace) - len(streams[0])]:
            held_before[block] = -(-size // 512) * 512
        result = simulate(trace, expandable_segments=True)
        assert result.peak_allocated_bytes == sum(held_before.values()) + tape.peak(batch.features)
        assert result.allocated_bytes == sum(held_before.values()) + tape.final(batch.features)
        assert result.peak_reserved_bytes >= result.peak_allocated_bytes


def test_state_comes_back_from_a_file() -> None:
    tape = solve_tape(
        streams_of(lambda n, e: [8 * n, 4 * e, -8 * n]), NODES_EDGES, ["nodes_0", "edges_1"], round_to=512
    )
    file = io.BytesIO()
    torch.save(tape.to_state(), file)
    file.seek(0)
    again = AllocationTape.from_state(torch.load(file, weights_only=True))
    np.testing.assert_array_equal(again.events, tape.events)
    assert (again.names, again.round_to, again.absent) == (("nodes_0", "edges_1"), 512, ())
    assert again.peak([100, 7]) == tape.peak([100, 7]) == 1024 + 512
    assert again.explain([100, 7]) == tape.explain([100, 7])
