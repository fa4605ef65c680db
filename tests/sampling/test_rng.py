from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.sampling import SampleKey
from lightning_gnnopt.sampling.rng import mix64, uniform_below

from . import reference
from .reference import SIGNIFICANCE, uniform_p_value

words = st.integers(0, 2**64 - 1)
# Of the bounds below 2**32, those just above 2**31 are rejected most often: every other time.
BOUNDS = [1, 2, 3, 10, 12, 1_000, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30 + 7, 2**32 - 1]


def draw(state: int, bound: int, size: int) -> tuple[list[int], int]:
    draws = []
    for _ in range(size):
        value, state = uniform_below(np.uint64(state), np.uint64(bound))
        draws.append(int(value))
    return draws, int(state)


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs for seed 1234567, as the generator's reference implementation in C prints them."""
    state, outputs = 1234567, []
    for _ in range(5):
        outputs.append(int(mix64(np.uint64(state))))
        state = (state + reference.GOLDEN) % 2**64
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(deadline=None)
@given(words)
def test_mix64_equals_the_reference(word: int) -> None:
    assert int(mix64(np.uint64(word))) == reference.mix64(word)


@settings(deadline=None)
@given(words, st.sampled_from(BOUNDS) | st.integers(1, 2**32 - 1))
def test_uniform_below_equals_the_reference(state: int, bound: int) -> None:
    value, after = uniform_below(np.uint64(state), np.uint64(bound))
    assert (int(value), int(after)) == reference.uniform_below(state, bound)
    assert 0 <= int(value) < bound


@pytest.mark.parametrize("bound", [2, 3, 10, 12, 1_000, 2**31 - 1, 2**31 + 1, 3 * 2**30 + 7, 2**32 - 1])
def test_uniform_below_is_uniform(bound: int) -> None:
    draws, _ = draw(state=99, bound=bound, size=40_000)
    num_cells = min(bound, 1_000)
    cells = np.array(draws) * num_cells // bound
    # Cells differ in width by one value at most: nothing beside 2**31 / 1000.
    assert uniform_p_value(np.bincount(cells, minlength=num_cells)) > SIGNIFICANCE


def test_a_bound_of_one_draws_zero() -> None:
    assert draw(state=5, bound=1, size=50)[0] == [0] * 50


def test_rejected_words_are_skipped() -> None:
    """At 2**31 + 1 a word is refused with probability (2**31 - 1) / 2**32, so 1 000 draws take about 2 000 words."""
    _, after = draw(state=0, bound=2**31 + 1, size=1_000)
    used = after * pow(reference.GOLDEN, -1, 2**64) % 2**64
    assert abs(used - 2_000) < 4 * np.sqrt(2_000)  # a geometric number of words has variance 2


def test_draws_depend_on_the_state_alone() -> None:
    assert draw(7, 10, 100) == draw(7, 10, 100)
    assert draw(7, 10, 100) != draw(8, 10, 100)


@settings(deadline=None)
@given(st.tuples(*[st.integers(-(2**63), 2**65)] * 4))
def test_fold_equals_the_reference(key: tuple[int, int, int, int]) -> None:
    word = SampleKey(*key).fold()
    assert isinstance(word, np.uint64)
    assert int(word) == reference.fold(key)


def test_fold_tells_every_field_and_every_order_apart() -> None:
    keys = set(permutations((0, 1, 2, 3))) | set(product(range(6), repeat=4))
    assert len({int(SampleKey(*key).fold()) for key in keys}) == len(keys) == 6**4


@settings(deadline=None)
@given(st.integers(0, 300), words)
def test_a_permutation_holds_every_number_once(size: int, seed: int) -> None:
    order = SampleKey(seed, epoch=3).permutation(size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))
    assert np.array_equal(order, SampleKey(seed, epoch=3).permutation(size))


def test_permutations_differ_between_keys_and_leave_numpys_generator_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    orders = {tuple(SampleKey(seed, epoch).permutation(20)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert np.random.random() == expected


def test_all_permutations_are_equally_likely() -> None:
    counts = dict.fromkeys(permutations(range(4)), 0)
    for epoch in range(4_800):
        counts[tuple(SampleKey(11, epoch).permutation(4).tolist())] += 1
    assert uniform_p_value(list(counts.values())) > SIGNIFICANCE
