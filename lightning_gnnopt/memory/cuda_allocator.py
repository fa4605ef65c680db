"""What a sequence of allocations makes torch's caching allocator reserve on a CUDA card."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from lightning_gnnopt.memory.cuda_blocks import LARGE_SEGMENT
from lightning_gnnopt.memory.cuda_segments import CachingAllocator


@dataclass(frozen=True, kw_only=True)
class AllocatorResult:
    """What a simulated allocator held.

    Attributes:
        peak_requested_bytes: Largest sum of the bytes asked for, before any rounding.
        peak_allocated_bytes: Largest sum of the blocks in use, ``torch.cuda.max_memory_allocated``. A block too small
            to be split counts whole, so that this can be more than the requests rounded up.
        peak_reserved_bytes: Largest sum of the memory taken from the card, ``torch.cuda.max_memory_reserved``.
        peak_unreleasable_bytes: Largest sum of the free parts of segments that have a block in use,
            ``inactive_split_bytes.all.peak`` of ``torch.cuda.memory_stats``: they cannot be given back to the card. As
            there, 0 with expandable segments.
        allocated_bytes: Sum of the blocks in use at the end.
        reserved_bytes: Memory taken from the card at the end.
        num_retries: How often the cache was emptied because the card was full.
        out_of_memory_at: Place of the event that found no memory, where the simulation ended; None if all did.
    """

    peak_requested_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    peak_unreleasable_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    num_retries: int
    out_of_memory_at: int | None


def simulate(
    trace: Iterable[tuple[Hashable, int] | tuple[Hashable, int, Hashable]],
    *,
    expandable_segments: bool = False,
    max_split_bytes: int | None = None,
    roundup_power2_divisions: int | Sequence[int] | None = None,
    limit_bytes: int | None = None,
) -> AllocatorResult:
    """Simulate torch's caching allocator, starting with an empty cache.

    Follows c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h of PyTorch 2.6 to 2.13. Requests are
    rounded up to 512 bytes; those of at most 1 MiB share segments of 2 MiB, those below 10 MiB segments of 20 MiB, and
    larger ones get a segment of their own in steps of 2 MiB. The smallest free block that is large enough serves a
    request, the one at the lowest address among equals. What it has too much is split off: from 512 bytes on
    in small segments, above 1 MiB in large ones. A released block joins its free neighbours in the segment. Blocks of
    different streams never mix. When the card is full, free segments go back to it and the request is tried again.

    With expandable segments, each stream has one range for small and one for large blocks. They grow at their end by
    pages of 2 and 20 MiB, and blocks are split from 512 bytes on.

    Not simulated: tensors used on a second stream, whose release waits; CUDA graphs; `garbage_collection_threshold`;
    and where the driver puts a segment, which decides between free blocks of equal size. Segments are put one behind
    the other.

    Args:
        trace: What happened, in order: ``(block id, signed bytes)`` or ``(block id, signed bytes, stream)``. Positive
            bytes allocate, negative bytes release the same block; the id may be used again after that. An event of 0
            bytes allocates nothing.
        expandable_segments: As in ``PYTORCH_ALLOC_CONF``.
        max_split_bytes: `max_split_size_mb` in bytes; None for no limit. A free block of that size or more serves
            requests that are as large only, less than 20 MiB smaller than it, and is not split.
        roundup_power2_divisions: Round requests up to one of so many steps between powers of two instead; a power of
            two. Several are for requests below 2 MiB, from there to 4 MiB, and so on; the last one also for all that is
            larger. None rounds to 512 bytes.
        limit_bytes: What the card can give; None for any amount.

    Returns:
        The peaks, and whether all requests could be served.

    Raises:
        ValueError: If a setting is out of range, a block is allocated twice, or a release has no allocation of its
            size.

    Examples:
        >>> result = simulate([("a", 1000), ("b", 3 * 2**20), ("a", -1000)])
        >>> result.peak_allocated_bytes - 3 * 2**20, result.peak_reserved_bytes // 2**20
        (1024, 22)
    """
    _check_settings(max_split_bytes, roundup_power2_divisions, limit_bytes)
    allocator = CachingAllocator(
        expandable=expandable_segments,
        max_split=inf if max_split_bytes is None else max_split_bytes,
        divisions=1 if roundup_power2_divisions is None else roundup_power2_divisions,
        limit=inf if limit_bytes is None else limit_bytes,
    )
    out_of_memory_at = None
    for place, event in enumerate(trace):
        block_id, size = event[0], int(event[1])
        if not size:
            continue
        held_bytes = allocator.held_bytes(block_id)
        if size < 0:
            if held_bytes != -size:
                found = "it is not held" if held_bytes is None else f"it has {held_bytes:,} bytes"
                raise ValueError(
                    f"A release in `trace` must match an allocation, but event {place} releases {-size:,} bytes of"
                    f" {block_id!r}, and {found}. HINT: begin the trace with the blocks held before."
                )
            allocator.free(block_id)
        elif held_bytes is not None:
            raise ValueError(
                f"A block of `trace` must be released before it is allocated again, but event {place} allocates"
                f" {block_id!r} a second time. HINT: give each allocation an id of its own."
            )
        elif not allocator.allocate(block_id, size, event[2] if len(event) == 3 else None):
            out_of_memory_at = place
            break
    return AllocatorResult(
        peak_requested_bytes=allocator.peak_requested,
        peak_allocated_bytes=allocator.peak_allocated,
        peak_reserved_bytes=allocator.peak_reserved,
        peak_unreleasable_bytes=allocator.peak_unreleasable,
        allocated_bytes=allocator.allocated,
        reserved_bytes=allocator.reserved,
        num_retries=allocator.num_retries,
        out_of_memory_at=out_of_memory_at,
    )


def _check_settings(max_split: int | None, divisions: int | Sequence[int] | None, limit: int | None) -> None:
    if max_split is not None and max_split <= LARGE_SEGMENT:
        raise ValueError(
            f"`max_split_bytes` must be more than {LARGE_SEGMENT:,}, a shared segment, but got {max_split:,}."
            " HINT: torch refuses such a `max_split_size_mb` too; leave it out for no limit."
        )
    several = divisions if isinstance(divisions, Sequence) else (1 if divisions is None else divisions,)
    if not several or any(steps < 1 or steps & (steps - 1) for steps in several):
        raise ValueError(
            f"`roundup_power2_divisions` must be a power of two, but got {divisions}. HINT: try 4, or leave it out."
        )
    if limit is not None and limit < 0:
        raise ValueError(f"`limit_bytes` must not be negative, but got {limit:,}. HINT: leave it out for no limit.")
