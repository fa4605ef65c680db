from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.sampling.node_table import _ENTRY_LIMIT, NodeTable, TablePool

KEYS = 50
keys = st.lists(st.integers(0, KEYS - 1), max_size=30)


def make(dense: bool, num_keys: int = KEYS) -> NodeTable:
    table = NodeTable(num_keys, dense_limit_bytes=4 * num_keys if dense else 4 * num_keys - 1)
    assert table.dense == dense
    return table


class Reference:
    """Numbers keys with a dict."""

    def start(self, seeds: list[int]) -> None:
        self.local: dict[int, int] = {}
        for place, seed in enumerate(seeds):
            self.local.setdefault(seed, place)
        self.size = len(seeds)

    def number(self, nodes: list[int]) -> tuple[list[int], list[int]]:
        new = []
        for node in nodes:
            if node not in self.local:
                self.local[node] = self.size
                self.size += 1
                new.append(node)
        return new, [self.local[node] for node in nodes]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dense", [True, False])
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_batch_after_batch_equals_a_dict(dense: bool, dtype: type, data: st.DataObject) -> None:
    table, reference = make(dense), Reference()
    for _ in range(data.draw(st.integers(1, 4))):
        seeds = data.draw(keys)
        table.start(np.array(seeds, dtype))
        reference.start(seeds)
        for _ in range(data.draw(st.integers(0, 3))):
            nodes = data.draw(keys)
            new, locals_ = table.number(np.array(nodes, dtype))
            assert (new.tolist(), locals_.tolist()) == reference.number(nodes)
            assert (new.dtype, locals_.dtype) == (dtype, np.int32)
            assert table.size == reference.size
            found = table.find(np.arange(KEYS, dtype=dtype))
            assert found.tolist() == [reference.local.get(node, -1) for node in range(KEYS)]


@pytest.mark.parametrize("dense", [True, False])
def test_entries_begin_anew_before_they_outgrow_32_bits(dense: bool) -> None:
    table, reference = make(dense), Reference()
    table.start(np.arange(9))
    table._base = _ENTRY_LIMIT - 40  # as after some thousands of batches
    for seeds, nodes in [([3, 1, 3], [2, 1, 7, 7]), ([5, 3], [1, 2, 3]), ([0, 9], [7, 5, 9] * 9), ([4], [3, 4])]:
        table.start(np.array(seeds))
        reference.start(seeds)
        for part in (nodes, nodes[::-1], [node + 11 for node in nodes]):
            new, locals_ = table.number(np.array(part))
            assert (new.tolist(), locals_.tolist()) == reference.number(part)
    assert table._base < 100


def test_a_hash_table_grows_with_the_batch_and_keeps_its_numbers() -> None:
    table, reference = make(dense=False, num_keys=2**40), Reference()
    generator = np.random.default_rng(0)
    for size in (10, 3_000, 50):
        seeds, nodes = generator.integers(0, 2**40, size), generator.integers(0, 2**40, 5 * size)
        nodes = np.concatenate([nodes, seeds, nodes[::2]])
        table.start(seeds)
        reference.start(seeds.tolist())
        new, locals_ = table.number(nodes)
        assert (new.tolist(), locals_.tolist()) == reference.number(nodes.tolist())
        assert table.find(seeds).tolist() == list(range(size))
    assert table.nbytes < 12 * 2 * 2 * 30_000  # of the largest batch, not of 2**40 keys


def test_keys_that_share_a_slot_are_told_apart() -> None:
    """Of more keys than slots many collide, whatever the hash; the table grows until each has a slot of its own."""
    table = make(dense=False, num_keys=2**20)
    table.start(np.empty(0, np.int64))
    nodes = np.arange(5_000) * 2**7
    new, locals_ = table.number(nodes)
    assert new.tolist() == nodes.tolist()
    assert locals_.tolist() == list(range(5_000))
    assert (table.find(nodes + 1) == -1).all()


def test_a_pool_lends_one_table_per_user_and_takes_it_back() -> None:
    pool = TablePool(KEYS)
    with pool.borrow() as first, pool.borrow() as second:
        assert first is not second
    with pool.borrow() as again:
        assert again in (first, second)
    assert len(pool._idle) == 2


def test_a_table_is_dropped_after_an_error() -> None:
    pool = TablePool(KEYS)
    with pytest.raises(RuntimeError, match="in a batch"), pool.borrow():
        raise RuntimeError("in a batch")
    assert pool._idle == []


def test_a_pool_travels_without_its_tables() -> None:
    pool = TablePool(10**6, dense_limit_bytes=10**5)
    with pool.borrow() as table:
        assert not table.dense
    copy = pickle.loads(pickle.dumps(pool))
    assert (copy.num_keys, copy.dense_limit_bytes, copy._idle) == (10**6, 10**5, [])
