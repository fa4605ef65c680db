"""A cost model that is fitted while a run goes on, and cuts that move with it."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.parallel.balance import Balancer, CostModel, LearnedBalance, imbalance

N = 2000


def skewed() -> np.ndarray:
    """Edges of which most go to the first nodes: parts of equal numbers of nodes have unequal numbers of in-edges."""
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, N, 20_000), (N * rng.random(20_000) ** 2.5).astype(np.int64)])


def contiguous(num_parts: int) -> np.ndarray:
    return np.arange(N) * num_parts // N


@pytest.mark.parametrize("speed", [(1.0, 1.0, 1.0, 1.0), (1.0, 3.0, 1.0, 0.5)], ids=["equal", "unequal"])
@pytest.mark.parametrize("costs", [(1e-6, 1e-6), (3e-5, 1e-7), (1e-8, 5e-6)], ids=["both", "nodes", "edges"])
def test_ranks_are_balanced_after_few_updates(costs: tuple[float, float], speed: tuple[float, ...]) -> None:
    """The true costs and speeds are hidden; times are off by some percent."""
    rng = np.random.default_rng(1)

    def took(sizes: np.ndarray) -> np.ndarray:
        return np.asarray(speed) * (sizes @ np.asarray(costs))

    balancer = Balancer(skewed(), contiguous(4), 4, LearnedBalance(max_updates=5))
    is_uneven = imbalance(took(balancer.sizes)) > 0.06
    assert is_uneven == ((costs[0], max(speed)) != (3e-5, 1.0))  # nodes of equal cost are in equal parts already
    for _ in range(6):
        balancer.observe(took(balancer.sizes) * (1 + 0.01 * rng.standard_normal(4)))
    assert is_uneven <= balancer.updates <= 5
    assert imbalance(took(balancer.sizes)) < 0.05
    assert imbalance(balancer.model.predict(balancer.sizes)) < 0.05


def test_a_slow_rank_gets_fewer_nodes() -> None:
    balancer = Balancer(skewed(), contiguous(2), 2, LearnedBalance())
    before = balancer.sizes
    assert balancer.observe(np.array([4.0, 1.0]) * (balancer.sizes @ [1e-6, 1e-6]))
    assert balancer.sizes[0].sum() < before[0].sum()
    assert np.array_equal(balancer.sizes.sum(0), before.sum(0))
    owner, degree = balancer.owner, np.bincount(skewed()[1], minlength=N)
    assert np.bincount(owner, minlength=2).tolist() == balancer.sizes[:, 0].tolist()
    assert np.bincount(owner, weights=degree).tolist() == balancer.sizes[:, 1].tolist()


def test_what_is_balanced_is_left_alone() -> None:
    balancer = Balancer(skewed(), contiguous(3), 3, LearnedBalance(tolerance=0.1))
    before = balancer.owner
    assert not balancer.observe(np.array([1.0, 1.05, 0.95]))
    assert np.array_equal(balancer.owner, before)
    assert np.array_equal(before, contiguous(3))  # the cells are pieces of the parts that were given


def test_cuts_are_moved_no_more_often_than_told() -> None:
    balancer = Balancer(skewed(), contiguous(2), 2, LearnedBalance(max_updates=1))
    assert balancer.observe(np.array([3.0, 1.0]))
    assert not balancer.observe(np.array([3.0, 1.0]))


def test_costs_and_speeds_are_found() -> None:
    rng = np.random.default_rng(0)
    model, speed, costs = CostModel(3), np.array([0.5, 1.0, 1.5]), np.array([2e-6, 3e-7])
    for _ in range(8):
        sizes = rng.uniform(1e3, 1e5, (3, 2))
        model.observe(sizes, speed * (sizes @ costs))
    assert model.speed == pytest.approx(speed, rel=0.01)
    assert model.costs == pytest.approx(costs, rel=0.02)
    assert model.predict(sizes) == pytest.approx(speed * (sizes @ costs), rel=0.01)


def test_moved_cells_lie_beside_the_rank_that_gets_them() -> None:
    """A ring: with neighbouring cells moved, few edges lead from part to part."""
    ring = np.stack([np.arange(N), (np.arange(N) + 1) % N])
    balancer = Balancer(ring, contiguous(2), 2, LearnedBalance())
    balancer.observe(np.array([3.0, 1.0]))
    owner = balancer.owner
    assert (owner == 0).sum() < 0.6 * N / 2 * 1.2
    assert (owner[ring[0]] != owner[ring[1]]).sum() <= 8


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"max_updates": 0}, {"tolerance": 0.0}, {"cells_per_part": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        LearnedBalance(**wrong)  # type: ignore[arg-type]
