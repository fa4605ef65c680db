from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lightning_gnnopt.loading.slabs import Slab, SlabPool


@pytest.fixture(autouse=True)
def _only_new_objects_are_collected() -> Iterator[None]:
    gc.freeze()  # there are so many of torch's and numba's that each collection would take half a second
    yield
    gc.unfreeze()


class FakeEvent:
    def __init__(self, reached: bool) -> None:
        self.reached = reached

    def query(self) -> bool:
        return self.reached

    def synchronize(self) -> None:
        assert self.reached


class FakeStream:
    """Counts the events that are recorded in it."""

    def __init__(self) -> None:
        self.recorded: list[FakeEvent] = []

    def record(self) -> FakeEvent:
        self.recorded.append(FakeEvent(False))
        return self.recorded[-1]


def make_pool(target: int = 2) -> SlabPool:
    return SlabPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), target=target)


def used(pool: SlabPool, nbytes: int = 100, *, busy: FakeEvent | None = None) -> Slab:
    slab = pool.acquire(nbytes)
    pool.give_back(slab, busy=busy)
    return slab


def test_a_slab_returns_with_the_last_tensor_over_it() -> None:
    pool = make_pool()
    slab = pool.acquire(100)
    whole = slab.lend(pool)
    assert whole.data_ptr() == slab.memory.data_ptr()
    view, alias = whole[3:9].view(2, 3), whole.detach()
    del whole
    assert pool.num_waiting == 0
    del view
    assert pool.num_waiting == 0
    del alias
    assert pool.num_waiting == 1
    assert pool.acquire(100) is slab


def test_the_garbage_collector_takes_no_slab_that_is_lent() -> None:
    """Nobody but the tensors knows of it by then."""
    pool = make_pool()
    slab = pool.acquire(100)
    address, alive = slab.memory.data_ptr(), weakref.ref(slab.memory)
    tensor = slab.lend(pool)
    del slab
    gc.collect()
    assert alive() is not None  # on a CUDA device the lent tensor is an address only
    del tensor
    gc.collect()
    assert (pool.num_waiting, pool.num_slabs) == (1, 1)
    assert pool.acquire(100).memory.data_ptr() == address


def test_memory_outlives_its_pool_as_long_as_a_tensor_uses_it() -> None:
    pool = make_pool()
    slab = pool.acquire(100)
    tensor, alive = slab.lend(pool).fill_(7), weakref.ref(slab.memory)
    del pool, slab
    gc.collect()
    assert alive() is not None
    assert tensor.tolist()[:100] == [7] * 100
    del tensor
    gc.collect()
    assert alive() is None


def test_a_slab_can_be_lent_again_and_again() -> None:
    pool = make_pool(target=1)
    slab = pool.acquire(100)
    for _ in range(20):
        tensor = slab.lend(pool)
        gc.collect()
        assert pool.num_waiting == 0
        del tensor
        assert pool.acquire(100) is slab
    assert pool.num_slabs == 1


def test_what_autograd_saved_keeps_the_slab() -> None:
    pool = make_pool()
    rows = pool.acquire(64).lend(pool)[:64].view(torch.float32).fill_(3)
    weight = torch.ones(16, requires_grad=True)
    loss = (rows * weight).sum()
    del rows
    gc.collect()
    assert pool.num_waiting == 0
    used(pool, 64).memory.zero_()  # another slab: the first is not free
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0] * 16
    del loss
    assert pool.num_waiting == 2


def test_a_thread_that_holds_the_last_reference_gives_the_slab_back() -> None:
    pool = make_pool()
    slab = pool.acquire(100)
    held = [slab.lend(pool)]
    go = threading.Event()

    def work(held: list[Tensor]) -> None:
        go.wait(20)
        held.clear()

    thread = threading.Thread(target=work, args=(held,))
    thread.start()
    assert pool.num_waiting == 0
    go.set()
    thread.join()
    assert pool.num_waiting == 1


def test_dropping_a_tensor_takes_no_lock() -> None:
    """It may happen anywhere, such as in the middle of `acquire`, in the same thread."""
    pool = make_pool()
    tensor = pool.acquire(100).lend(pool)
    with pool._lock:
        del tensor
    assert pool.num_waiting == 1


def test_the_readers_place_at_the_drop_becomes_busy() -> None:
    pool, stream = make_pool(target=1), FakeStream()
    slab = pool.acquire(100)
    tensor = slab.lend(pool)
    slab.reader = stream
    assert stream.recorded == []
    del tensor
    assert [slab.busy] == stream.recorded
    assert slab.reader is None
    assert pool.acquire(100) is slab  # at the target, though the device still works on it

    tensor = slab.lend(pool)  # the host reads it this time
    del tensor
    assert slab.busy is None
    assert len(stream.recorded) == 1


def test_up_to_the_target_a_busy_slab_is_left_alone() -> None:
    pool = make_pool(target=3)
    first = used(pool, busy=FakeEvent(False))
    second = used(pool, busy=FakeEvent(False))
    assert first is not second
    third = used(pool)
    assert used(pool) is third  # idle ones go first
    third.busy = FakeEvent(False)
    assert pool.acquire(100) is first  # then the one that returned first
    assert pool.num_slabs == 3


def test_an_idle_slab_is_taken_before_a_busy_one() -> None:
    pool = make_pool(target=2)
    one, other = pool.acquire(100), pool.acquire(100)
    pool.give_back(one, busy=FakeEvent(False))
    pool.give_back(other, busy=FakeEvent(True))
    assert pool.acquire(100) is other
    assert pool.acquire(100) is one


def test_there_are_more_while_all_are_lent_out_and_no_more_than_the_target_afterwards() -> None:
    pool = make_pool(target=2)
    kept = [pool.acquire(100).lend(pool) for _ in range(7)]
    assert pool.num_slabs == 7
    kept.clear()
    used(pool)
    assert pool.num_slabs == 2
    assert pool.nbytes == 2 * 4096


@pytest.mark.parametrize(("nbytes", "size"), [(1, 4096), (3640, 4096), (3641, 8192), (8192, 12288)])
def test_a_slab_has_an_eighth_to_spare_in_whole_pages(nbytes: int, size: int) -> None:
    assert len(make_pool().acquire(nbytes).memory) == size


def test_nothing_needs_no_memory() -> None:
    pool = make_pool(target=1)
    empty = pool.acquire(0)
    assert empty.lend(pool).shape == (0,)
    gc.collect()
    assert pool.num_waiting == 1
    assert len(used(pool, 10).memory) == 4096
    assert pool.num_slabs == 1


def test_a_slab_that_is_too_small_makes_room_for_a_larger_one() -> None:
    pool = make_pool(target=2)
    small = [pool.acquire(100), pool.acquire(100)]
    for slab in small:
        pool.give_back(slab)
    large = pool.acquire(10_000)
    assert len(large.memory) >= 10_000
    assert pool.num_slabs == 2
    pool.give_back(large)
    assert len(pool.acquire(10_000).memory) >= 10_000
    assert pool.num_slabs == 2


def test_batches_of_varying_size_settle_on_slabs_for_the_largest() -> None:
    allocated: list[int] = []

    def allocate(nbytes: int) -> Tensor:
        allocated.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8)

    pool = SlabPool(allocate, target=3)
    sizes = torch.randint(1_000, 100_000, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for nbytes in [100_000, *sizes]:
        tensors = [pool.acquire(nbytes).lend(pool) for _ in range(2)]
        assert all(len(tensor) >= nbytes for tensor in tensors)
        del tensors
    assert len(allocated) == pool.num_slabs == 2


def test_a_failed_allocation_is_not_counted() -> None:
    fail = [True]

    def allocate(nbytes: int) -> Tensor:
        if fail[0]:
            raise MemoryError("no room")
        return torch.empty(nbytes, dtype=torch.uint8)

    pool = SlabPool(allocate, target=1)
    for _ in range(5):
        with pytest.raises(MemoryError, match="no room"):
            pool.acquire(10)
    assert pool.num_slabs == 0
    fail[0] = False
    assert used(pool) is pool.acquire(10)


def test_what_is_above_the_target_goes_as_soon_as_it_returns() -> None:
    pool = make_pool(target=2)
    kept = [pool.acquire(100).lend(pool) for _ in range(5)]
    for left in (4, 3, 2, 2, 2):
        kept.pop()
        assert (pool.num_slabs, pool.nbytes) == (left, left * 4096)


def test_slabs_of_a_size_that_no_longer_comes_go() -> None:
    """As after an evaluation over full neighbourhoods."""
    pool = make_pool(target=3)
    large = [pool.acquire(1_000_000).lend(pool) for _ in range(3)]
    del large
    assert pool.nbytes > 3_000_000
    for _ in range(150):
        tensors = [pool.acquire(1000).lend(pool) for _ in range(3)]
        assert pool.num_slabs <= 4
        del tensors
    assert pool.nbytes <= 3 * 4096


@pytest.mark.parametrize(("max_bytes", "num"), [(1, 2), (8192, 4), (16_384, 6), (None, 7)])
def test_bytes_bound_how_many_are_made_while_others_are_busy(max_bytes: int | None, num: int) -> None:
    """Beyond `max_bytes` there are two more: that of this step and that of the next."""
    pool = SlabPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), target=7, max_bytes=max_bytes)
    for _ in range(20):
        used(pool, busy=FakeEvent(False))
    assert (pool.num_slabs, pool.nbytes) == (num, num * 4096)


def test_trim_frees_what_waits() -> None:
    pool = make_pool(target=3)
    slabs = [pool.acquire(100) for _ in range(3)]
    for slab in slabs[:2]:
        pool.give_back(slab)
    assert (pool.num_slabs, pool.num_waiting, pool.nbytes) == (3, 2, 3 * 4096)
    pool.trim()
    assert (pool.num_slabs, pool.num_waiting, pool.nbytes) == (1, 0, 4096)
    pool.give_back(slabs[2])
    assert pool.acquire(100) is slabs[2]


def test_many_threads_never_share_a_slab() -> None:
    pool = make_pool(target=4)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(150):
            tensor = pool.acquire(1000).lend(pool)[:1000].fill_(number)
            if not bool((tensor == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    pool.acquire(1000)
    assert pool.num_slabs <= 6
