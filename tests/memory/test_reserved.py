from __future__ import annotations

from collections.abc import Sequence
from math import inf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric.nn import GCNConv

from lightning_gnnopt.memory import reserved
from lightning_gnnopt.memory.cuda_allocator import simulate
from lightning_gnnopt.memory.cuda_segments import CachingAllocator
from lightning_gnnopt.memory.footprint import Ahead, Footprint
from lightning_gnnopt.memory.predictors import AnalyticPredictor
from lightning_gnnopt.memory.reserved import Reserve, model_blocks, needed_bytes, simulate_reserve
from lightning_gnnopt.memory.reserved_settings import AllocatorSettings
from lightning_gnnopt.memory.tape import AllocationTape, solve_tape
from tests.memory import recording

MIB = 2**20
NATIVE, EXPANDABLE = AllocatorSettings(), AllocatorSettings(expandable_segments=True)
Trace = list[tuple[Any, int]]


def mib(*events: tuple[str, int]) -> Trace:
    return [(name, size * MIB) for name, size in events]


# What a trace needs


@pytest.mark.parametrize(
    ("trace", "native", "expandable"),
    [
        (mib(("a", 3)), 20, 20),  # alone in a shared segment, or a page
        (mib(("a", 30)), 30, 40),
        # 40 MiB are free when 60 are asked for: native gives them back, a range that expands uses them.
        (mib(("a", 40), ("a", -40), ("b", 60)), 60, 60),
        # b keeps the segment of 20 MiB: 18 of them are for nothing. A range that expands puts c behind b.
        (mib(("a", 20), ("a", -20), ("b", 2), ("c", 30)), 50, 40),
        # b keeps 100 MiB, and c needs as much, as there are no more than 98 in a row. Of a range the pages go back.
        (mib(("a", 100), ("a", -100), ("b", 2), ("c", 100)), 200, 120),
    ],
)
def test_the_smallest_card_by_hand(trace: Trace, native: int, expandable: int) -> None:
    assert needed_bytes(trace, tolerance=0) == native * MIB
    assert needed_bytes(trace, tolerance=0, settings=EXPANDABLE) == expandable * MIB


def test_nothing_needs_nothing() -> None:
    assert needed_bytes([]) == 0


sizes = st.lists(st.tuples(st.booleans(), st.integers(1, 40 * MIB), st.integers(0, 9)), max_size=30)


def random_trace(program: Sequence[tuple[bool, int, int]]) -> Trace:
    live: Trace = []
    trace: Trace = []
    for number, (releases, size, which) in enumerate(program):
        if releases and live:
            block, size = live.pop(which % len(live))
            trace.append((block, -size))
        else:
            live.append((number, size))
            trace.append((number, size))
    return trace


@settings(deadline=None, max_examples=60)
@given(sizes, st.booleans())
def test_one_byte_less_is_too_little(program: Sequence[tuple[bool, int, int]], expandable: bool) -> None:
    trace = random_trace(program)
    options = AllocatorSettings(expandable_segments=expandable)
    needed = needed_bytes(trace, tolerance=0, settings=options)
    free = simulate(trace, **options.options)
    assert free.peak_allocated_bytes <= needed <= free.peak_reserved_bytes
    assert needed % (2 * MIB) == 0  # all segments and pages are multiples of it
    assert simulate(trace, limit_bytes=needed, **options.options).out_of_memory_at is None
    if needed:
        assert simulate(trace, limit_bytes=needed - 1, **options.options).out_of_memory_at is not None
    about = needed_bytes(trace, tolerance=0.1, settings=options)
    assert needed <= about <= needed + 0.1 * free.peak_requested_bytes


# What cannot be given back, as torch counts it


@pytest.mark.parametrize(
    ("trace", "unreleasable"),
    [
        (mib(("a", 20), ("a", -20)), 0),  # a whole segment is free
        (mib(("a", 3)), 17),
        (mib(("a", 4), ("b", 4), ("c", 4), ("b", -4)), 16),  # at first; at the end 4 + 8
        (mib(("a", 4), ("b", 4), ("c", 12), ("a", -4)), 16),  # 16 after a, 12 after b, 0 after c, 4 at the end
        (mib(("a", 4), ("b", 16), ("a", -4)), 16),
        ([("a", 512), ("b", 512), ("a", -512)], 2 * MIB - 512),
    ],
)
def test_free_parts_of_segments_in_use(trace: Trace, unreleasable: int) -> None:
    expected = unreleasable if unreleasable > MIB else unreleasable * MIB
    assert simulate(trace).peak_unreleasable_bytes == expected
    assert simulate(trace, expandable_segments=True).peak_unreleasable_bytes == 0


@settings(deadline=None, max_examples=60)
@given(sizes, st.sampled_from([inf, 130 * MIB]))
def test_free_parts_by_looking_at_all_blocks(program: Sequence[tuple[bool, int, int]], limit: float) -> None:
    allocator = CachingAllocator(expandable=False, max_split=inf, divisions=1, limit=limit)
    most = 0
    for block, size in random_trace(program):
        if size < 0:
            if allocator.held_bytes(block) is not None:
                allocator.free(block)
        else:
            allocator.allocate(block, size, None)
        free = [block for pool in allocator._pools.values() for block in pool.blocks.values()]
        split = sum(block.size for block in free if block.prev is not None or block.next is not None)
        assert sum(pool.split_bytes for pool in allocator._pools.values()) == split
        most = max(most, split)
    assert allocator.peak_unreleasable == most


def test_steps_between_powers_of_two_by_size() -> None:
    def block(size: int, divisions: int | tuple[int, ...]) -> int:
        return simulate([("a", size)], roundup_power2_divisions=divisions).peak_allocated_bytes

    several = (8, 4, 2)  # below 2 MiB, below 4, and above
    assert block(1000 * 1024 + 1, several) == 1024 * 1024  # eight of 64 KiB between 512 and 1,024 KiB
    assert block(2 * MIB + 1, several) == 2.5 * MIB
    assert block(4 * MIB + 1, several) == block(4 * MIB + 1, 2) == 6 * MIB
    assert block(9 * MIB, several) == 12 * MIB
    assert block(9 * MIB, (1,)) == 9 * MIB
    with pytest.raises(ValueError, match=r"`roundup_power2_divisions` must be a power of two, but got \(8, 3\)"):
        block(1, (8, 3))


# The factor


def tape_of(*events: tuple[int, int], signs: Sequence[int]) -> AllocationTape:
    """Each event ``(constant, slope)``, a size in bytes as a function of `nodes_0`."""
    return AllocationTape([[c, a] for c, a in events], signs=signs, names=["nodes_0"])


def footprint_of(
    tape: AllocationTape, *, held_bytes: int = 0, batch_slope: int = 0, ahead: Ahead | None = None
) -> Footprint:
    reader: Any = SimpleNamespace(names=("nodes_0",))
    return Footprint(
        reader=reader,
        predictors={"step": AnalyticPredictor(tape.pieces(), feature_names=["nodes_0"])},
        batch_row=np.array([0.0, batch_slope]),
        held_bytes=held_bytes,
        ahead=Ahead() if ahead is None else ahead,
    )


PLAIN = tape_of((0, 1), (0, -1), signs=[1, -1])  # as many bytes as nodes, for a moment


def factor_of(tape: AllocationTape, footprint: Footprint, *nodes: float, **options: Any) -> float:
    rows = [[number * MIB] for number in nodes]
    return simulate_reserve(tape, footprint, rows, **{"settings": NATIVE, **options}).factor


def test_a_step_of_one_block() -> None:
    footprint = footprint_of(PLAIN)
    assert factor_of(PLAIN, footprint, 30) == 1.0  # the 22.5 MiB of the smaller step before are given back
    assert factor_of(PLAIN, footprint, 25) == pytest.approx(26 / 25)
    assert factor_of(PLAIN, footprint, 3) == pytest.approx(20 / 3)


def test_gradients_that_stay() -> None:
    # The gradient of before is released, n allocated, the new gradient of 2 MiB, n released.
    tape = tape_of((-2 * MIB, 0), (0, 1), (2 * MIB, 0), (0, -1), signs=[-1, 1, 1, -1])
    footprint = footprint_of(tape, held_bytes=2 * MIB)
    # 20 MiB take a shared segment whole; the gradient needs a second one: 40 for the predicted 22.
    assert factor_of(tape, footprint, 20) == pytest.approx(40 / 22)
    assert factor_of(tape, footprint, 20, settings=EXPANDABLE) == pytest.approx(40 / 22)
    assert factor_of(tape, footprint, 2000) == pytest.approx(2020 / 2002)


def test_optimizer_state_in_what_the_first_step_left() -> None:
    # 10 MiB of parameters, 20 of state. Step 1 has a segment of 26 MiB, in which the state then lies (10 + 10, 6 free),
    # so that step 2 needs another: 10 + 26 + 26 for the predicted 30 + 25.
    footprint = footprint_of(PLAIN, held_bytes=30 * MIB)
    assert factor_of(PLAIN, footprint, 25, blocks=[10 * MIB]) == pytest.approx(62 / 55)


def test_batches_that_wait_have_segments_of_their_own() -> None:
    # Three buffers of 9/8 x 40 = 45 MiB in segments of 46, and the step's 40: 178, for the predicted 4 x 40.
    waiting = footprint_of(PLAIN, batch_slope=1, ahead=Ahead(batches=2))
    assert factor_of(PLAIN, waiting, 40) == pytest.approx(178 / 160)
    limited = footprint_of(PLAIN, batch_slope=1, ahead=Ahead(batches=3, max_bytes=90 * MIB))
    assert factor_of(PLAIN, limited, 40) == pytest.approx(178 / (80 + 90))
    # Without any the batch comes and goes on the stream of the step.
    assert factor_of(PLAIN, footprint_of(PLAIN, batch_slope=1), 40) == 1.0


def test_batches_are_made_as_large_as_the_largest() -> None:
    footprint = footprint_of(PLAIN)
    assert factor_of(PLAIN, footprint, 1, 25) == factor_of(PLAIN, footprint, 25, 25) == pytest.approx(26 / 25)
    held = footprint_of(PLAIN, held_bytes=5 * MIB)
    assert factor_of(PLAIN, held, 900, budget_bytes=30 * MIB) == factor_of(PLAIN, held, 25)
    assert factor_of(PLAIN, held, 25, budget_bytes=1000 * MIB) == factor_of(PLAIN, held, 25)


def layers(number: int) -> AllocationTape:
    """Activations of several sizes that live until backward, which makes gradients between them."""
    forward = [(0, 1 + layer % 3) for layer in range(number)]
    events, signs = [(-MIB, 0)] * number + forward, [-1] * number + [1] * number
    for _, slope in reversed(forward):
        events += [(0, slope), (MIB, 0), (0, -slope), (0, -slope)]
        signs += [1, 1, -1, -1]
    return tape_of(*events, signs=signs)


def test_segments_that_expand_waste_little() -> None:
    tape = layers(9)
    footprint = footprint_of(tape, held_bytes=9 * MIB)
    rng = np.random.default_rng(0)
    nodes = rng.uniform(50, 100, 8)
    native, expandable = (factor_of(tape, footprint, *nodes, settings=options) for options in (NATIVE, EXPANDABLE))
    largest = footprint.predict(np.array([nodes.max() * MIB]))
    assert 1 < expandable <= 1 + 80 * MIB / largest < native  # some pages


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=8), st.booleans(), st.integers(0, 2))
def test_the_factor_lets_each_batch_pass_twice_after_a_smaller_one(
    nodes: list[int], expandable: bool, waiting: int
) -> None:
    tape = layers(4)
    footprint = footprint_of(tape, held_bytes=5 * MIB, batch_slope=1, ahead=Ahead(batches=waiting))
    options = AllocatorSettings(expandable_segments=expandable)
    rows = np.array([[number * MIB] for number in nodes], np.float64)
    reserve = simulate_reserve(tape, footprint, rows, blocks=[MIB], settings=options)
    assert 1 <= reserve.factor <= reserve.bound
    assert reserve.reason == ""
    largest = rows.max(axis=0)
    smaller = np.floor(0.75 * largest)
    trace = reserved._trace(tape, footprint, np.stack([smaller, largest, largest]), [MIB])
    limit = int(reserve.factor * footprint.predict(largest)) + 1
    assert simulate(trace, limit_bytes=limit, **options.options).out_of_memory_at is None
    assert simulate(trace).peak_requested_bytes >= footprint.predict(largest)


@pytest.fixture(scope="module")
def recorded_tape() -> AllocationTape:
    """Of a training step of two GCN layers with Adam, from what torch's profiler saw."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [recording.random_batch(rng, 20, 60) for _ in range(12)]
    step = recording.training_step(recording.Net([GCNConv(20, 128), GCNConv(128, 7)]))
    return solve_tape(recording.record(step, batches), [batch.features for batch in batches], recording.NAMES)


@pytest.mark.parametrize("options", [NATIVE, EXPANDABLE])
def test_a_recorded_step_on_many_batches(recorded_tape: AllocationTape, options: AllocatorSettings) -> None:
    """The card that 40 further batches need, against what 8 said; seeded."""
    rng = np.random.default_rng(1)
    reader: Any = SimpleNamespace(names=recording.NAMES)
    footprint = Footprint(
        reader=reader,
        predictors={"step": AnalyticPredictor(recorded_tape.pieces(), feature_names=recording.NAMES)},
        batch_row=np.array([0.0, 88, 80, 80, 16, 16, 0, 0]),
        held_bytes=60_000,
        ahead=Ahead(batches=2),
    )
    usual = np.array([3_000, 24_000, 90_000, 30_000, 240_000, 500, 5_000])
    rows = np.floor(usual * rng.uniform(0.5, 1.5, (48, len(usual))))
    reserve = simulate_reserve(recorded_tape, footprint, rows[:8], blocks=[20 * 128 * 4], settings=options)
    many = reserved._as_large_as_the_largest(rows[8:], footprint, None)
    trace = reserved._trace(recorded_tape, footprint, many, [20 * 128 * 4])
    needed = needed_bytes(trace, settings=options) / max(footprint.predict(row) for row in many)
    assert 0.85 * needed <= reserve.factor <= 1.15 * needed
    assert needed <= reserve.bound
    if options is EXPANDABLE:
        assert reserve.factor < 1.15
    else:
        assert reserve.factor > 1.15


def test_the_factor_in_use_does_not_count() -> None:
    footprint = footprint_of(PLAIN)
    footprint.reserved_factor = 3.0
    assert factor_of(PLAIN, footprint, 25) == pytest.approx(26 / 25)


def test_the_footprint_may_read_fewer_features_than_the_tape_has() -> None:
    tape = AllocationTape([[0, 0, 1], [0, 0, -1]], signs=[1, -1], names=["loops_1", "nodes_0"])
    assert factor_of(tape, footprint_of(PLAIN), 25) == pytest.approx(26 / 25)


def test_what_is_not_simulated() -> None:
    footprint = footprint_of(PLAIN)
    by_driver = simulate_reserve(PLAIN, footprint, [[25 * MIB]], settings=AllocatorSettings(backend="cudaMallocAsync"))
    assert by_driver == Reserve(
        factor=1.0, bound=1.0, reason="the backend 'cudaMallocAsync' keeps its memory in pools of the driver"
    )
    assert simulate_reserve(PLAIN, footprint, np.empty((0, 1)), settings=NATIVE).reason == "no batch was looked at"


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch reads the environment once, when it is first asked.
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", str, raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    assert simulate_reserve(PLAIN, footprint_of(PLAIN), [[25 * MIB]]).reason


@pytest.mark.parametrize(("num_events", "num_rows"), [(2, 8), (312, 8), (313, 7), (1000, 2), (5000, 1)])
def test_long_steps_have_fewer_batches(num_events: int, num_rows: int) -> None:
    rows = np.arange(100.0)[:, None]
    chosen = reserved._spread(rows, num_events)[:, 0]
    assert chosen.tolist() == np.linspace(0, 99, num_rows).astype(int).tolist()
    assert len(reserved._spread(rows[:2], num_events)) == min(2, num_rows)


def test_blocks_of_a_model() -> None:
    net = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 20, bias=False), nn.Linear(20, 20))
    net[3].weight = net[2].weight
    net.register_buffer("elsewhere", torch.empty(7, device="meta"))
    expected = [800, 80, 80, 80, 1600, 80, 80, 80, 8]  # the shared weight once; the running mean, variance, count
    assert sorted(model_blocks(net, torch.device("cpu"))) == sorted(expected)
