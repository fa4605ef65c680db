"""Blocks of memory and the pools that keep the free ones, as torch's caching allocator has them."""

from __future__ import annotations

from bisect import bisect_left, insort

_MIB = 2**20
SMALL_SEGMENT = 2 * _MIB
LARGE_SEGMENT = 20 * _MIB


class Block:
    """Consecutive bytes of a segment, in use, free, or (of a range that expands) without memory behind them."""

    __slots__ = ("address", "is_free", "is_mapped", "next", "pool", "prev", "requested", "size")

    def __init__(self, address: int, size: int, pool: Pool, *, is_mapped: bool = True) -> None:
        self.address, self.size, self.pool = address, size, pool
        self.is_mapped = is_mapped
        self.is_free = True
        self.requested = 0
        self.prev: Block | None = None
        self.next: Block | None = None

    @property
    def is_split(self) -> bool:
        """Whether it is a part of a segment, which cannot be given back alone."""
        return self.prev is not None or self.next is not None

    def cut(self, size: int) -> Block:
        """Keep the first `size` bytes; the rest becomes the next block."""
        rest = Block(self.address + size, self.size - size, self.pool, is_mapped=self.is_mapped)
        rest.prev, rest.next = self, self.next
        if rest.next is not None:
            rest.next.prev = rest
        self.next, self.size = rest, size
        return rest


class Pool:
    """The free blocks of one stream, small or large."""

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.page = SMALL_SEGMENT if is_small else LARGE_SEGMENT
        self.free: list[tuple[int, int]] = []  # (size, address), sorted
        self.unmapped: list[int] = []  # addresses, sorted
        self.blocks: dict[int, Block] = {}  # all of both kinds, by address
        self.split_bytes = 0  # in free blocks that are a part of a segment

    def add(self, block: Block) -> None:
        """Add a free block after it took in the free neighbours that are as it is, mapped or not."""
        for neighbour in (block.prev, block.next):
            if neighbour is None or not neighbour.is_free or neighbour.is_mapped is not block.is_mapped:
                continue
            self.remove(neighbour)
            block.size += neighbour.size
            if neighbour is block.prev:
                block.address, block.prev = neighbour.address, neighbour.prev
                if block.prev is not None:
                    block.prev.next = block
            else:
                block.next = neighbour.next
                if block.next is not None:
                    block.next.prev = block
        self.blocks[block.address] = block
        if block.is_mapped:
            insort(self.free, (block.size, block.address))
            self.split_bytes += block.size if block.is_split else 0
        else:
            insort(self.unmapped, block.address)

    def remove(self, block: Block) -> None:
        """Take a block out, to use or to change it."""
        del self.blocks[block.address]
        if block.is_mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
            self.split_bytes -= block.size if block.is_split else 0
        else:
            del self.unmapped[bisect_left(self.unmapped, block.address)]
