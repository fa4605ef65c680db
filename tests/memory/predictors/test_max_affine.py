from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.memory.predictors import LinearPredictor, MaxAffinePredictor
from lightning_gnnopt.memory.predictors.max_affine_kernels import alternate

NAMES = ["nodes_0", "nodes_1", "nodes_2", "edges_1", "edges_2"]
PIECES = np.array([[3e5, 900, 2000, 60, 36, 8], [0, 100, 520, 300, 60, 20], [1e5, 500, 64, 90, 80, 60]])


def _batches(num_batches: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts as of a sampler, and peaks that are the largest of three affine functions of them."""
    rng = np.random.default_rng(seed)
    nodes_1 = rng.integers(200, 900, num_batches).astype(float)
    nodes_2 = np.round(nodes_1 * rng.uniform(0.5, 9, num_batches))
    edges_1 = np.round(nodes_1 * rng.uniform(1, 1.6, num_batches))
    edges_2 = np.round(nodes_2 * rng.uniform(1, 9, num_batches))
    features = np.column_stack([np.full(num_batches, 64.0), nodes_1, nodes_2, edges_1, edges_2])
    return features, np.array([max(p[0] + p[1:] @ row for p in PIECES) for row in features])


def test_finds_a_maximum_of_affine_functions() -> None:
    features, peaks = _batches(80, seed=0)
    unseen, expected = _batches(500, seed=1)
    winners = np.argmax(np.column_stack([np.ones(500), unseen]) @ PIECES.T, axis=1)
    assert np.bincount(winners, minlength=3).min() > 25  # all three moments matter
    predictor = MaxAffinePredictor(NAMES).fit(features, peaks)
    assert np.abs(predictor.predict(unseen) / expected - 1).mean() < 0.001
    line = LinearPredictor(NAMES).fit(features, peaks)
    assert np.abs(line.predict(unseen) / expected - 1).mean() > 0.01


def test_twins_of_the_same_samples_are_equal() -> None:
    features, peaks = _batches(60, seed=2)
    one, other = (MaxAffinePredictor(NAMES).fit(features, peaks).pieces for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_a_noisy_line_stays_a_line() -> None:
    rng = np.random.default_rng(3)
    features = rng.uniform(100, 1000, (60, 2))
    peaks = (1e5 + features @ [300, 40]) * rng.normal(1, 0.01, 60)
    predictor = MaxAffinePredictor(["nodes", "edges"]).fit(features, peaks)
    line = LinearPredictor(["nodes", "edges"]).fit(features, peaks)
    np.testing.assert_allclose(predictor.pieces, line.pieces, rtol=1e-5)


def test_pieces_and_predictions_agree() -> None:
    features, peaks = _batches(80, seed=0)
    predictor = MaxAffinePredictor(NAMES).fit(features, peaks)
    expected = (np.column_stack([np.ones(80), features]) @ predictor.pieces.T).max(axis=1)
    np.testing.assert_allclose(predictor.predict(features), expected, rtol=1e-12)
    assert predictor.predict(features[5]) == pytest.approx(expected[5], rel=1e-12)
    assert 3 <= len(predictor.pieces) <= 5
    assert np.isfinite(predictor.pieces).all()


def test_margin_covers_what_the_fit_hides() -> None:
    """A third of 150 samples is held out in turn; of 2,000 unseen ones at least 90 % - 4 % lie below the bound.

    The share covered by a bound calibrated on 150 samples has a standard deviation of 2.4 points.
    """
    rng = np.random.default_rng(4)
    features, peaks = _batches(150, seed=5)
    unseen, expected = _batches(2000, seed=6)
    predictor = MaxAffinePredictor(NAMES, coverage=0.9).fit(features, peaks * rng.lognormal(0, 0.03, 150))
    covered = (expected * rng.lognormal(0, 0.03, 2000) <= predictor.upper(unseen)).mean()
    assert 0.86 <= covered <= 0.96


@pytest.mark.parametrize("num_samples", [2, 3, 4, 7])
def test_very_few_samples_get_a_line(num_samples: int) -> None:
    features, peaks = _batches(num_samples, seed=7)
    predictor = MaxAffinePredictor(NAMES).fit(features, peaks)
    assert len(predictor.pieces) == 2
    line = LinearPredictor(NAMES).fit(features, peaks)
    np.testing.assert_allclose(predictor.predict(features), line.predict(features), rtol=1e-4)


def test_more_pieces_come_with_more_samples() -> None:
    predictor = MaxAffinePredictor(NAMES)
    features, peaks = _batches(200, seed=8)
    for row, peak in zip(features, peaks, strict=True):
        predictor.update(row, peak)
    unseen, expected = _batches(300, seed=9)
    assert np.abs(predictor.predict(unseen) / expected - 1).mean() < 0.002


def test_one_round_is_least_squares_in_each_part() -> None:
    rng = np.random.default_rng(10)
    design = np.column_stack([np.ones(40), rng.normal(size=(40, 2))])
    targets = rng.normal(size=40)
    parts = np.arange(40) % 2
    planes, moved, loss = alternate(design, targets, parts, 2, np.zeros(3), 1e-12, 1)
    for part in (0, 1):
        reference = np.linalg.lstsq(design[parts == part], targets[parts == part], rcond=None)[0]
        np.testing.assert_allclose(planes[part], reference, rtol=1e-8)
    values = design @ planes.T
    np.testing.assert_array_equal(moved, values.argmax(axis=1))
    assert loss == pytest.approx(((values.max(axis=1) - targets) ** 2).sum())


def test_a_part_without_samples_never_wins() -> None:
    design = np.column_stack([np.ones(10), np.arange(10.0)])
    planes, moved, loss = alternate(design, 3 * np.arange(10.0), np.zeros(10, np.int64), 2, np.zeros(2), 1e-12, 5)
    assert planes[1, 0] == -np.inf
    np.testing.assert_array_equal(moved, 0)
    assert loss == pytest.approx(0, abs=1e-12)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`num_pieces` must be at least 1, but got 0. HINT: "):
        MaxAffinePredictor(NAMES, num_pieces=0)
    with pytest.raises(ValueError, match=r"`num_restarts` must be at least 0, but got -1. HINT: "):
        MaxAffinePredictor(NAMES, num_restarts=-1)
