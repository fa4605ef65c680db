from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.memory.predictors import ConformalMargin


def _margin(ratios: np.ndarray, coverage: float, *, accepted: bool = False, window: int = 2000) -> ConformalMargin:
    margin = ConformalMargin(coverage, window=window)
    margin.replace(np.full(len(ratios), 1000.0), 1000.0 * ratios, np.full(len(ratios), accepted))
    return margin


@pytest.mark.parametrize(
    ("num_samples", "coverage", "rank"), [(999, 0.999, 999), (1999, 0.999, 1998), (99, 0.95, 95), (19, 0.95, 19)]
)
def test_factor_is_the_ratio_of_the_finite_sample_rank(num_samples: int, coverage: float, rank: int) -> None:
    ratios = np.random.default_rng(0).lognormal(0, 0.1, num_samples)
    assert _margin(ratios, coverage).factor == pytest.approx(sorted(ratios)[rank - 1], rel=1e-12)


@given(
    st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
)
@settings(deadline=None)
def test_factor_against_sorting(ratios: list[float], coverage: float) -> None:
    rank = math.ceil(round((len(ratios) + 1) * coverage, 9))
    expected = max(1.0, max(ratios)) if rank > len(ratios) else sorted(ratios)[rank - 1]
    margin = _margin(np.array(ratios), coverage)
    assert margin.factor == pytest.approx(expected, rel=1e-12)
    assert margin.factor_at(coverage) == margin.factor


def test_few_samples_state_less_and_are_never_below_the_prediction() -> None:
    margin = _margin(np.array([0.9, 0.95, 0.97]), 0.999)
    assert margin.factor == 1.0
    assert margin.stated_coverage() == 0.75
    assert margin.stated_coverage(0.5) == 0.5
    assert ConformalMargin().stated_coverage() == 0.0
    assert ConformalMargin().factor == ConformalMargin().factor_at(0.5) == 1.0


def test_enough_samples_bring_an_overestimate_down() -> None:
    assert _margin(np.full(999, 0.8), 0.999).factor == pytest.approx(0.8)
    assert _margin(np.full(998, 0.8), 0.999).factor == 1.0


@pytest.mark.parametrize("num_samples", [1, 10, 5000])
def test_no_error_no_margin(num_samples: int) -> None:
    margin = ConformalMargin(window=700)
    margin.near_bytes = 2e9
    for size in np.random.default_rng(1).integers(0, 10**9, num_samples):
        margin.update(float(size), float(size))
    assert margin.factor == 1.0
    assert margin.debt == 0.0


def test_coverage_on_independent_samples() -> None:
    """99 samples at 95 %: rank 95 of 100, so P(covered) is exactly 0.95. Two-sided at 99.99 % of 4,000 trials."""
    rng = np.random.default_rng(2)
    trials = 4000
    ratios = rng.lognormal(0, 0.2, (trials, 100))
    covered = sum(row[-1] <= _margin(row[:-1], 0.95).factor for row in ratios)
    assert abs(covered - 0.95 * trials) < 3.9 * math.sqrt(trials * 0.95 * 0.05)


def test_window_forgets() -> None:
    margin = ConformalMargin(0.9, window=20, adapt=0)
    for measured in [2000.0] * 20 + [1010.0] * 20:
        margin.update(1000, measured)
    assert margin.num_samples == 20
    assert margin.factor == pytest.approx(1.01)


def test_replace_keeps_the_latest() -> None:
    margin = ConformalMargin(0.5, window=3)
    margin.replace([1000, 1000, 1000, 1000], [9000, 1010, 1020, 1030])
    assert margin.num_samples == 3
    assert margin.factor == pytest.approx(1.02)


def test_accepted_samples_calibrate_alone_once_there_are_enough() -> None:
    margin = ConformalMargin(0.9)
    others, accepted = np.full(50, 1.5), np.full(9, 1.1)
    ratios = np.concatenate([others, accepted])
    flags = np.arange(59) >= 50
    margin.replace(np.full(59, 1000.0), ratios * 1000, flags)
    assert margin.factor == pytest.approx(1.1)
    margin.replace(np.full(58, 1000.0), ratios[:-1] * 1000, flags[:-1])
    assert margin.factor == pytest.approx(1.5)


def test_samples_near_the_budget_calibrate() -> None:
    predicted = np.arange(1.0, 401) * 1000
    ratios = np.where(predicted > 300_000, 1.2, 1.01)
    margin = ConformalMargin(0.9)
    margin.replace(predicted, predicted * ratios, np.ones(400, bool))
    margin.near_bytes = 400_000
    assert margin.factor == pytest.approx(1.2)
    margin.near_bytes = 150_000
    assert margin.factor == pytest.approx(1.01)


def test_errors_of_tiny_batches_count_relative_to_a_hundredth_of_the_largest() -> None:
    margin = ConformalMargin(0.99)
    margin.replace([0.0, 1_000_000.0], [1000.0, 1_000_000.0])
    assert margin.factor == pytest.approx(1 + 1000 / 10_000)


def test_debt_counts_misses_and_pays_back() -> None:
    margin = ConformalMargin(0.9, adapt=0.25)
    margin.near_bytes = 1500
    margin.update(1000, 1600)
    assert margin.debt == pytest.approx(0.9)
    margin.update(1000, 1400)
    assert margin.debt == pytest.approx(0.8)
    margin.update(1000, 1600, accepted=False)
    assert margin.debt == pytest.approx(0.8)
    for _ in range(9):
        margin.update(1000, 1000)
    assert margin.debt == 0.0


def test_debt_raises_the_rank_and_then_the_bound() -> None:
    ratios = 1 + np.arange(99) / 100
    margin = _margin(ratios, 0.9)
    assert margin.factor == pytest.approx(1.89)  # rank 90
    margin.debt = 2.0
    assert margin.factor == pytest.approx(1.94)  # 5 % allowed: rank 95
    margin.debt = 4.0
    assert margin.factor == pytest.approx(1.98)
    margin.debt = 6.0
    assert margin.factor == pytest.approx(1.98 + 0.5 * (1.98 - 1.49))
    assert margin.factor_at(0.9) == pytest.approx(1.89)


def _misses(ratios: np.ndarray, adapt: float) -> int:
    margin = ConformalMargin(0.99, window=500, adapt=adapt)
    misses = 0
    for step, ratio in enumerate(ratios):
        misses += step >= 500 and ratio > margin.factor
        margin.update(1000, 1000 * ratio)
    return misses


def test_level_keeps_the_rate_of_misses_under_drift() -> None:
    """Ratios climb all the time. 1 % asked for become more than 2 %; the adaptive level allows 1 % and 5 misses."""
    rng = np.random.default_rng(3)
    steps = 6000
    ratios = 1 + np.arange(steps) * 2e-5 + rng.normal(0, 0.005, steps)
    allowed = 0.01 * steps
    assert _misses(ratios, adapt=0) > 2 * allowed
    assert _misses(ratios, adapt=0.25) <= allowed + 4 + 1


def test_level_after_a_jump() -> None:
    """A layer is unfrozen: from one step to the next the peaks are 30 % higher. At 99.9 % of the binomial law."""
    rng = np.random.default_rng(4)
    steps = 4000
    ratios = np.where(np.arange(steps) < 2000, 1.0, 1.3) + rng.normal(0, 0.005, steps)
    allowed = 0.01 * steps
    assert _misses(ratios, adapt=0.25) <= allowed + 3.1 * math.sqrt(allowed)


def test_coverage_among_accepted_batches() -> None:
    """Errors that grow with the batch: the margin must hold near the budget, not on average. 99.9 % one-sided."""
    rng = np.random.default_rng(5)
    budget, coverage = 0.8e9, 0.95
    shares = {}
    for near in (None, budget):
        margin = ConformalMargin(coverage)
        margin.near_bytes = near
        num_near = num_missed = num_accepted = num_over = 0
        for step, predicted in enumerate(rng.uniform(0.1e9, 1e9, 12_000)):
            measured = predicted * (1 + rng.normal(0, 0.08 * (predicted / 1e9) ** 2))
            upper = predicted * margin.factor
            if upper > budget:
                continue
            if step > 2000:
                num_accepted += 1
                num_over += measured > budget
                if upper > 0.95 * budget:
                    num_near += 1
                    num_missed += measured > upper
            margin.update(predicted, measured)
        assert num_over <= (1 - coverage) * num_accepted
        shares[near] = num_missed / num_near
    slack = 3.1 * math.sqrt(coverage * (1 - coverage) / num_near)
    assert shares[budget] <= 1 - coverage + slack
    assert shares[None] > 2 * (1 - coverage)


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, math.nan])
def test_coverage_must_be_a_probability(coverage: float) -> None:
    with pytest.raises(ValueError, match=r"`coverage` must lie between 0 and 1.* HINT: "):
        ConformalMargin(coverage)
    with pytest.raises(ValueError, match="`coverage`"):
        ConformalMargin().factor_at(coverage)
    with pytest.raises(ValueError, match="`coverage`"):
        ConformalMargin().stated_coverage(coverage)


def test_other_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`window` must be at least 1, but got 0. HINT: "):
        ConformalMargin(window=0)
    with pytest.raises(ValueError, match=r"`adapt` must be a number from 0 up, but got -1. HINT: "):
        ConformalMargin(adapt=-1)
    margin = ConformalMargin()
    with pytest.raises(
        ValueError, match=r"`near_bytes` must be a positive number of bytes or None, but got -5. HINT: "
    ):
        margin.near_bytes = -5
    with pytest.raises(ValueError, match=r"`debt` must be a number from 0 up, but got nan. HINT: "):
        margin.debt = math.nan
    with pytest.raises(ValueError, match=r"must be of one shape, but are of \(2,\), \(3,\) and \(2,\). HINT: "):
        margin.replace([1, 2], [1, 2, 3])
