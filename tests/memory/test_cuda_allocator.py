from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.memory.cuda_allocator import AllocatorResult, simulate
from lightning_gnnopt.memory.cuda_segments import CachingAllocator

KIB, MIB = 2**10, 2**20


def allocated(*sizes: int, **options: int | bool) -> AllocatorResult:
    return simulate(list(enumerate(sizes)), **options)


# Sizes


@pytest.mark.parametrize(
    ("requested", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (12 * MIB - 512, 12 * MIB, 12 * MIB),  # 512 bytes too many are not worth a split
        (13 * MIB, 14 * MIB, 14 * MIB),  # nor is 1 MiB
        (13 * MIB - 512, 13 * MIB - 512, 14 * MIB),  # but a byte more is
    ],
)
def test_rounding_of_a_single_request(requested: int, block: int, segment: int) -> None:
    result = allocated(requested)
    assert (result.peak_requested_bytes, result.peak_allocated_bytes, result.peak_reserved_bytes) == (
        requested,
        block,
        segment,
    )


@pytest.mark.parametrize(
    ("requested", "block"),
    [(1000, 1024), (2048, 2048), (2049, 2560), (3100, 3584), (4000, 4096), (5 * MIB, 5 * MIB), (5 * MIB + 1, 6 * MIB)],
)
def test_rounding_to_parts_of_powers_of_two(requested: int, block: int) -> None:
    # Four steps between 4 and 8 MiB are 1 MiB each; up to 4 x 512 bytes the usual rounding holds.
    assert allocated(requested, roundup_power2_divisions=4).peak_allocated_bytes == block


def test_zero_bytes_allocate_nothing() -> None:
    result = simulate([("a", 0), ("a", 0)])
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes) == (0, 0)


def test_small_requests_share_a_segment() -> None:
    assert allocated(*[MIB] * 2).reserved_bytes == 2 * MIB
    assert allocated(*[MIB] * 3).reserved_bytes == 4 * MIB
    assert allocated(*[512] * 4096).reserved_bytes == 2 * MIB
    assert allocated(*[512] * 4097).reserved_bytes == 4 * MIB


def test_middle_requests_share_a_segment_and_large_ones_its_rest() -> None:
    assert allocated(9 * MIB, 9 * MIB).reserved_bytes == 20 * MIB
    assert allocated(9 * MIB, 11 * MIB).reserved_bytes == 20 * MIB
    assert allocated(9 * MIB, 12 * MIB).reserved_bytes == 32 * MIB


# Reuse


def test_smallest_block_that_fits_serves() -> None:
    # The request for 12 MiB takes the 12 MiB segment, though that of 16 was free first; then 16 fits as well.
    trace = [("a", 16 * MIB), ("b", 12 * MIB), ("a", -16 * MIB), ("b", -12 * MIB), ("c", 12 * MIB), ("d", 16 * MIB)]
    assert simulate(trace).peak_reserved_bytes == 28 * MIB
    assert simulate(trace).peak_allocated_bytes == 28 * MIB


def test_lowest_address_serves_among_equals() -> None:
    # Two segments of 4 KiB blocks have a hole of 4 KiB each. The lower one is filled, and so the second segment is
    # free as a whole once its other blocks are gone: a limit of 4 MiB lets 20 MiB in only then.
    low, high = [(f"low{i}", 512 * KIB) for i in range(4)], [(f"high{i}", 512 * KIB) for i in range(4)]
    trace = [*low, *high, ("high1", -512 * KIB), ("low1", -512 * KIB), ("new", 512 * KIB)]
    trace += [(name, -size) for name, size in high if name != "high1"]
    result = simulate([*trace, ("large", 20 * MIB)], limit_bytes=22 * MIB)
    assert (result.out_of_memory_at, result.num_retries, result.reserved_bytes) == (None, 1, 22 * MIB)


def test_released_neighbours_become_one_block() -> None:
    blocks = [(name, 512 * KIB) for name in "abcd"]
    for order in ("bc", "cb"):
        trace = [*blocks, *((name, -512 * KIB) for name in order), ("e", MIB)]
        assert simulate(trace).peak_reserved_bytes == 2 * MIB
    apart = [*blocks, ("a", -512 * KIB), ("c", -512 * KIB), ("e", MIB)]
    assert simulate(apart).peak_reserved_bytes == 4 * MIB


def test_segments_do_not_merge() -> None:
    trace = [("a", 20 * MIB), ("b", 20 * MIB), ("a", -20 * MIB), ("b", -20 * MIB), ("c", 40 * MIB)]
    assert simulate(trace).peak_reserved_bytes == 80 * MIB


def test_small_and_large_blocks_do_not_mix() -> None:
    assert simulate([("a", 20 * MIB), ("a", -20 * MIB), ("b", 512)]).peak_reserved_bytes == 22 * MIB


def test_streams_do_not_mix() -> None:
    trace = [("a", 20 * MIB, "copy"), ("a", -20 * MIB, "copy"), ("b", 20 * MIB, "main")]
    assert simulate(trace).peak_reserved_bytes == 40 * MIB
    assert simulate([event[:2] for event in trace]).peak_reserved_bytes == 20 * MIB


def test_oversize_blocks_stay_whole() -> None:
    # 100 MiB free: not for 30 MiB under a limit of 64, nor for 64 as it is 36 too large; but for 90.
    for size, reserved, in_use in ((30, 130, 30), (64, 164, 64), (90, 100, 100)):
        trace = [("a", 100 * MIB), ("a", -100 * MIB), ("b", size * MIB)]
        result = simulate(trace, max_split_bytes=64 * MIB)
        assert (result.reserved_bytes, result.allocated_bytes) == (reserved * MIB, in_use * MIB)
        assert simulate(trace).reserved_bytes == 100 * MIB


# A full card


def test_full_card_gets_free_segments_back() -> None:
    trace = [("a", 40 * MIB), ("b", 20 * MIB), ("a", -40 * MIB), ("c", 60 * MIB)]
    result = simulate(trace, limit_bytes=80 * MIB)
    assert (result.out_of_memory_at, result.num_retries, result.reserved_bytes) == (None, 1, 80 * MIB)
    assert simulate(trace).reserved_bytes == 120 * MIB


def test_segment_with_a_block_in_use_is_not_given_back() -> None:
    trace = [("a", 20 * MIB), ("a", -20 * MIB), ("b", 2 * MIB), ("c", 30 * MIB)]
    result = simulate(trace, limit_bytes=40 * MIB)
    assert (result.out_of_memory_at, result.num_retries) == (3, 1)
    assert (result.reserved_bytes, result.allocated_bytes, result.peak_reserved_bytes) == (20 * MIB, 2 * MIB, 20 * MIB)


def test_only_as_many_oversize_blocks_go_as_are_needed() -> None:
    held = [("a", 100 * MIB), ("b", 80 * MIB), ("c", 70 * MIB)]
    free = [(name, -size) for name, size in held]
    options = {"max_split_bytes": 64 * MIB, "limit_bytes": 250 * MIB}
    one = simulate([*held, *free, ("d", 65 * MIB), ("e", 30 * MIB)], **options)
    # d is served by c, which is 5 MiB too large; e makes b go, the smallest that is large enough.
    assert (one.allocated_bytes, one.reserved_bytes, one.num_retries) == ((70 + 30) * MIB, (100 + 70 + 30) * MIB, 0)
    several = simulate([*held, *free, ("d", 150 * MIB)], **options)
    # None has 150 MiB: the largest go first, a and b.
    assert (several.reserved_bytes, several.num_retries) == ((70 + 150) * MIB, 0)


def test_end_of_memory_ends_the_simulation() -> None:
    result = allocated(30 * MIB, 31 * MIB, 1, limit_bytes=60 * MIB)
    assert (result.out_of_memory_at, result.allocated_bytes, result.peak_reserved_bytes) == (1, 30 * MIB, 30 * MIB)


# Expandable segments


def test_expandable_segment_grows_by_pages() -> None:
    for sizes, reserved in (((512,), 2), ((MIB, MIB, 512), 4), ((2 * MIB,), 20), ((15 * MIB, 15 * MIB), 40)):
        result = allocated(*sizes, expandable_segments=True)
        assert (result.reserved_bytes, result.allocated_bytes) == (reserved * MIB, sum(sizes))


def test_expandable_segment_grows_together_with_what_is_free() -> None:
    # 40 MiB are free at the end of the range when 41 are asked for: one page more is enough.
    trace = [("a", 20 * MIB), ("b", 40 * MIB), ("b", -40 * MIB), ("c", 41 * MIB)]
    assert simulate(trace, expandable_segments=True).reserved_bytes == 80 * MIB
    assert simulate(trace).reserved_bytes == 20 * MIB + 40 * MIB + 42 * MIB


def test_expandable_end_is_left_whole_while_another_block_fits() -> None:
    # A hole of 20 MiB, and 10 free MiB at the growing end: 8 MiB go into the hole, though the end is the closer fit.
    held = [("a", 20 * MIB), ("b", 30 * MIB)]
    trace = [*held, ("a", -20 * MIB), ("c", 8 * MIB), ("d", 10 * MIB)]
    assert simulate(trace, expandable_segments=True).reserved_bytes == 60 * MIB
    # The end still has its 10 MiB, and so grows by one page only for 30 MiB; the hole has 2.
    assert simulate([*trace, ("e", 30 * MIB)], expandable_segments=True).reserved_bytes == 80 * MIB


def test_expandable_pages_go_back_one_by_one() -> None:
    # 50 of 80 MiB are free, from 20 to 70: the pages from 20 to 60 go back, the 10 MiB after them stay.
    trace = [("a", 20 * MIB), ("b", 50 * MIB), ("c", 10 * MIB), ("b", -50 * MIB), ("x", 1, "other")]
    result = simulate(trace, expandable_segments=True, limit_bytes=80 * MIB)
    assert (result.num_retries, result.reserved_bytes) == (1, 42 * MIB)
    # Up to 50 MiB then get these two pages again, together with the 10 MiB; 51 need three new ones at the end.
    for size, reserved in ((40, 82), (45, 82), (51, 102)):
        allocator = CachingAllocator(expandable=True, max_split=inf, divisions=1, limit=80 * MIB)
        for block, signed, *stream in trace:
            if signed > 0:
                assert allocator.allocate(block, signed, stream[0] if stream else None)
            else:
                allocator.free(block)
        allocator._limit = inf
        assert allocator.allocate("d", size * MIB, None)
        assert allocator.reserved == reserved * MIB


def test_expandable_segments_bear_batches_of_changing_size() -> None:
    # Each batch is a little larger than all before it, so that no block of the cache serves it.
    trace: list[tuple[Hashable, int]] = []
    for batch in range(20):
        sizes = [(20 + batch) * MIB, (33 + 2 * batch) * MIB, (51 + 3 * batch) * MIB]
        trace += [((batch, place), size) for place, size in enumerate(sizes)]
        trace += [((batch, place), -size) for place, size in enumerate(sizes)]
    plain, expandable = simulate(trace), simulate(trace, expandable_segments=True)
    peak = (39 + 71 + 108) * MIB
    assert plain.peak_requested_bytes == expandable.peak_allocated_bytes == peak
    assert expandable.peak_reserved_bytes == 220 * MIB
    assert plain.peak_reserved_bytes > 5 * peak
    assert simulate(trace, expandable_segments=True, limit_bytes=220 * MIB).out_of_memory_at is None


# Mistakes


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ([("a", -5)], "event 0 releases 5 bytes of 'a', and it is not held"),
        ([("a", 1000), ("a", -512)], "event 1 releases 512 bytes of 'a', and it has 1,000 bytes"),
        ([("a", 8), ("a", 8)], "event 1 allocates 'a' a second time"),
    ],
)
def test_traces_that_cannot_be(trace: list[tuple[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(trace)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_split_bytes": 20 * MIB}, "`max_split_bytes` must be more than 20,971,520"),
        ({"roundup_power2_divisions": 3}, "`roundup_power2_divisions` must be a power of two, but got 3"),
        ({"limit_bytes": -1}, "`limit_bytes` must not be negative, but got -1"),
    ],
)
def test_settings_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate([], **options)


# Any sequence


@st.composite
def traces(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Blocks of all sizes on two streams, released in any order; in the end all or not."""
    sizes = st.one_of(st.integers(1, 4096), st.integers(1, 3 * MIB), st.integers(MIB, 45 * MIB))
    trace: list[tuple[int, int, int]] = []
    held: list[tuple[int, int, int]] = []
    for block in range(draw(st.integers(1, 40))):
        trace.append((block, draw(sizes), draw(st.integers(0, 1))))
        held.append(trace[-1])
        for _ in range(draw(st.integers(0, min(2, len(held))))):
            number, size, stream = held.pop(draw(st.integers(0, len(held) - 1)))
            trace.append((number, -size, stream))
    if draw(st.booleans()):
        trace += [(number, -size, stream) for number, size, stream in held]
    return trace


def by_intervals(trace: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Peaks of allocated and reserved bytes by the plain rules, over lists of ``[start, size, block or None]``."""
    segments: list[tuple[tuple[int, bool], list[list]]] = []
    allocated_peak = allocated_now = start = reserved = 0
    for block, signed, stream in trace:
        if signed < 0:
            for _, parts in segments:
                place = next((i for i, part in enumerate(parts) if part[2] == block), None)
                if place is None:
                    continue
                allocated_now -= parts[place][1]
                parts[place][2] = None
                merged: list[list] = []
                for part in parts:
                    if merged and merged[-1][2] is None and part[2] is None:
                        merged[-1][1] += part[1]
                    else:
                        merged.append(part)
                parts[:] = merged
            continue
        size = (signed + 511) // 512 * 512
        kind = (stream, size <= MIB)
        pool = [(parts, part) for kind_of, parts in segments if kind_of == kind for part in parts]
        free = [(part[1], part[0], parts, part) for parts, part in pool if part[2] is None and part[1] >= size]
        if free:
            _, _, parts, part = min(free, key=lambda entry: entry[:2])
        else:
            steps = (size + 2 * MIB - 1) // (2 * MIB)
            whole = 2 * MIB if size <= MIB else 20 * MIB if size < 10 * MIB else steps * 2 * MIB
            part = [start, whole, None]
            parts = [part]
            segments.append((kind, parts))
            start += whole
            reserved += whole
        rest = part[1] - size
        if rest >= 512 if size <= MIB else rest > MIB:
            parts.insert(parts.index(part) + 1, [part[0] + size, rest, None])
            part[1] = size
        part[2] = block
        allocated_now += part[1]
        allocated_peak = max(allocated_peak, allocated_now)
    return allocated_peak, reserved


@settings(max_examples=150, deadline=None)
@given(traces())
def test_agrees_with_lists_of_intervals(trace: list[tuple[int, int, int]]) -> None:
    result = simulate(trace)
    assert (result.peak_allocated_bytes, result.peak_reserved_bytes) == by_intervals(trace)


@settings(max_examples=150, deadline=None)
@given(traces(), st.booleans(), st.sampled_from([None, 32 * MIB]), st.sampled_from([None, 60 * MIB, 200 * MIB]))
def test_invariants(
    trace: list[tuple[int, int, int]], expandable: bool, max_split: int | None, limit: int | None
) -> None:
    result = simulate(trace, expandable_segments=expandable, max_split_bytes=max_split, limit_bytes=limit)
    executed = trace[: result.out_of_memory_at]
    held = held_rounded = peak = peak_rounded = 0
    for _, size, _ in executed:
        held += size
        held_rounded += (abs(size) + 511) // 512 * 512 * (1 if size > 0 else -1)
        peak, peak_rounded = max(peak, held), max(peak_rounded, held_rounded)
    assert result.peak_requested_bytes == peak
    assert peak_rounded <= result.peak_allocated_bytes <= result.peak_reserved_bytes
    assert result.allocated_bytes <= result.reserved_bytes <= result.peak_reserved_bytes
    if expandable:
        assert result.peak_allocated_bytes == peak_rounded
        assert result.reserved_bytes % (2 * MIB) == 0
    if not held:
        assert result.allocated_bytes == 0
    if limit is None:
        assert (result.out_of_memory_at, result.num_retries) == (None, 0)
        assert result.reserved_bytes == result.peak_reserved_bytes
    else:
        assert result.peak_reserved_bytes <= limit


@settings(max_examples=100, deadline=None)
@given(traces(), st.booleans(), st.sampled_from([100 * MIB, 400 * MIB]))
def test_blocks_tile_their_segments(trace: list[tuple[int, int, int]], expandable: bool, limit: int) -> None:
    allocator = CachingAllocator(expandable=expandable, max_split=inf, divisions=1, limit=limit)
    held = {}
    for block, size, stream in trace:
        if size > 0 and allocator.allocate(block, size, stream):
            held[block] = allocator._held[block]
        elif size < 0 and held.pop(block, None):
            allocator.free(block)
        every = [*held.values(), *(free for pool in allocator._pools.values() for free in pool.blocks.values())]
        spans = sorted((one.address, one.address + one.size) for one in every)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert sum(one.size for one in every if one.is_mapped) == allocator.reserved
        assert sum(one.size for one in held.values()) == allocator.allocated
        for one in every:
            assert one.next is None or (one.next.address == one.address + one.size and one.next.prev is one)
            twins = one.next is not None and one.is_free and one.next.is_free and one.is_mapped is one.next.is_mapped
            assert not twins
        for pool in allocator._pools.values():
            mapped = sorted((one.size, one.address) for one in pool.blocks.values() if one.is_mapped)
            assert pool.free == mapped
            assert pool.unmapped == sorted(one.address for one in pool.blocks.values() if not one.is_mapped)
