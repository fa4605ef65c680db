"""The rules of torch's caching allocator, run without a card."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from itertools import islice
from math import inf

from lightning_gnnopt.memory.cuda_blocks import LARGE_SEGMENT, SMALL_SEGMENT, Block, Pool

_MIB = 2**20
_ALIGNMENT = 512
_SMALL = _MIB
_OWN_SEGMENT = 10 * _MIB
_SEGMENT_STEP = 2 * _MIB
_PAGES_PER_RANGE = 2**24  # addresses are plentiful: a range that expands never meets its end


class CachingAllocator:
    """The caching allocator's rules, which :func:`lightning_gnnopt.memory.cuda_allocator.simulate` lists.

    Callers validate; sizes are in bytes.

    Args:
        expandable: Whether segments expand.
        max_split: From which size on free blocks are not split; infinity splits all.
        divisions: Steps between powers of two to which requests are rounded up: below 2 MiB, then to 4 MiB, and so
            on; the last one for all that is larger. 1 rounds to 512 bytes.
        limit: What the card can give; infinity is any amount.
    """

    def __init__(self, *, expandable: bool, max_split: float, divisions: int | Sequence[int], limit: float) -> None:
        self._expandable, self._max_split, self._limit = expandable, max_split, limit
        self._divisions = (divisions,) if isinstance(divisions, int) else tuple(divisions)
        self._pools: dict[tuple[Hashable, bool], Pool] = {}
        self._held: dict[Hashable, Block] = {}
        self._next_address = 0
        self.requested = self.allocated = self.reserved = 0
        self.peak_requested = self.peak_allocated = self.peak_reserved = self.peak_unreleasable = 0
        self.num_retries = 0

    def held_bytes(self, block_id: Hashable) -> int | None:
        """Look up how many bytes were asked for as this block; None if it is not held."""
        block = self._held.get(block_id)
        return None if block is None else block.requested

    def allocate(self, block_id: Hashable, requested: int, stream: Hashable) -> bool:
        """Serve a request; False if the card has not enough."""
        size = self._rounded(requested)
        is_small = size <= _SMALL
        pool = self._pools.get((stream, is_small))
        if pool is None:
            pool = self._pools[stream, is_small] = Pool(is_small=is_small)
        block = self._cached(pool, size) or self._new(pool, size)
        if block is None and self._give_back_oversize(pool, size):
            block = self._new(pool, size)
        if block is None:
            self._give_back_free()
            self.num_retries += 1
            block = self._new(pool, size)
        if block is None:
            return False
        block.is_free = False
        if self._is_split(block, size):
            pool.add(block.cut(size))
            self._note_unreleasable()
        block.requested = requested
        self.requested += requested
        self.allocated += block.size
        self.peak_requested = max(self.peak_requested, self.requested)
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self._held[block_id] = block
        return True

    def free(self, block_id: Hashable) -> None:
        """Put a block back into the cache."""
        block = self._held.pop(block_id)
        self.requested -= block.requested
        self.allocated -= block.size
        block.is_free = True
        block.pool.add(block)
        self._note_unreleasable()

    def _note_unreleasable(self) -> None:
        if not self._expandable:  # whose pages can be given back
            split_bytes = sum(pool.split_bytes for pool in self._pools.values())
            self.peak_unreleasable = max(self.peak_unreleasable, split_bytes)

    def _rounded(self, size: int) -> int:
        interval = max(size.bit_length() - _SMALL.bit_length(), 0)
        divisions = self._divisions[min(interval, len(self._divisions) - 1)]
        if divisions > 1 and size > _ALIGNMENT * divisions:
            step = (1 << (size.bit_length() - 1)) // divisions
        else:
            step = _ALIGNMENT
        return -(-size // step) * step

    def _is_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.is_small or self._expandable:
            return rest >= _ALIGNMENT
        return size < self._max_split and rest > _SMALL

    def _cached(self, pool: Pool, size: int) -> Block | None:
        """Take the best free block out of the pool, or None if there is none that may serve."""
        place = bisect_left(pool.free, (size, -1))
        if place == len(pool.free):
            return None
        block = pool.blocks[pool.free[place][1]]
        if self._expandable:
            # A block at the growing end counts as large as it could become, so that it is left whole while others fit.
            for _, address in islice(pool.free, place + 1, None):
                following = pool.blocks[address]
                if _expanded_size(following) >= _expanded_size(block):
                    break
                block = following
        is_oversize = size >= self._max_split
        if is_oversize and block.size >= size + LARGE_SEGMENT:
            return None
        if not is_oversize and block.size >= self._max_split:
            return None
        pool.remove(block)
        return block

    def _new(self, pool: Pool, size: int) -> Block | None:
        """Take memory from the card; None if it has not enough."""
        if self._expandable:
            return self._expanded(pool, size)
        if pool.is_small:
            segment = SMALL_SEGMENT
        elif size < _OWN_SEGMENT:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // _SEGMENT_STEP) * _SEGMENT_STEP
        if not self._reserve(segment):
            return None
        block = Block(self._next_address, segment, pool)
        self._next_address += segment
        return block

    def _reserve(self, size: int) -> bool:
        if self.reserved + size > self._limit:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _expanded(self, pool: Pool, size: int) -> Block | None:
        """Put memory behind the first addresses that have room, together with a free block before them."""
        block = self._room(pool, size)
        while not block.is_mapped or block.size < size:
            missing = block if not block.is_mapped else block.next
            assert missing is not None  # `_room` saw it
            wanted = size if missing is block else size - block.size
            mapped = min(missing.size, -(-wanted // pool.page) * pool.page)
            if not self._reserve(mapped):
                return None
            pool.remove(missing)
            rest = missing.cut(mapped) if mapped < missing.size else None
            missing.is_mapped = True
            if rest is not None:
                pool.add(rest)
            pool.add(missing)
            block = missing
        pool.remove(block)
        return block

    def _room(self, pool: Pool, size: int) -> Block:
        for address in pool.unmapped:
            start = pool.blocks[address]
            if start.prev is not None and start.prev.is_free:
                start = start.prev
            room, block = 0, start
            while room < size and block is not None and block.is_free:
                room += block.size
                block = block.next  # type: ignore[assignment]
            if room >= size:
                return start
        begin = -(-self._next_address // pool.page) * pool.page
        self._next_address = begin + _PAGES_PER_RANGE * pool.page
        start = Block(begin, _PAGES_PER_RANGE * pool.page, pool, is_mapped=False)
        pool.add(start)
        return start

    def _give_back_oversize(self, pool: Pool, size: int) -> bool:
        """Give back the free block that is too large to be split but large enough, or several, the largest first."""
        if self._max_split == inf or self._expandable:
            return False
        wanted = max(size, self._max_split)
        place = bisect_left(pool.free, (wanted, -1))
        if place < len(pool.free):
            self._give_back(pool.blocks[pool.free[place][1]])
            return True
        given = 0
        while given < wanted and pool.free and pool.free[-1][0] >= self._max_split:
            given += pool.free[-1][0]
            self._give_back(pool.blocks[pool.free[-1][1]])
        return given >= wanted

    def _give_back_free(self) -> None:
        """Empty the cache: give back all segments, or pages of ranges, without a block in use."""
        for pool in self._pools.values():
            for _, address in list(pool.free):
                block = pool.blocks[address]
                if self._expandable:
                    self._unmap(block)
                elif block.prev is None and block.next is None:
                    self._give_back(block)

    def _give_back(self, block: Block) -> None:
        block.pool.remove(block)
        self.reserved -= block.size

    def _unmap(self, block: Block) -> None:
        pool, page = block.pool, block.pool.page
        begin = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if begin >= end:
            return
        pool.remove(block)
        whole = block
        if begin > block.address:
            whole = block.cut(begin - block.address)
        rest = whole.cut(end - begin) if end < whole.address + whole.size else None
        whole.is_mapped = False
        self.reserved -= whole.size
        if whole is not block:
            pool.add(block)
        if rest is not None:
            pool.add(rest)
        pool.add(whole)


def _expanded_size(block: Block) -> int:
    follower = block.next
    return block.size + (follower.size if follower is not None and not follower.is_mapped else 0)
