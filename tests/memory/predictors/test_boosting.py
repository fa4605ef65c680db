from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.memory.predictors import BoostingPredictor


def _samples(num_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.uniform(100, 1000, (num_samples, 2))
    return features, features @ [100, 30] * rng.lognormal(0, 0.05, num_samples)


def test_predicts_a_high_quantile() -> None:
    """Of 2,000 unseen batches clearly more than half, and more than by the median, lie below."""
    features, peaks = _samples(400, seed=0)
    unseen, expected = _samples(2000, seed=1)
    shares = [
        (
            expected <= BoostingPredictor(["nodes", "edges"], quantile=quantile).fit(features, peaks).predict(unseen)
        ).mean()
        for quantile in (0.5, 0.95)
    ]
    assert shares[1] > max(0.65, shares[0] + 0.15)


def test_bound_has_its_coverage() -> None:
    """Calibrated on 400 samples, the share covered has a standard deviation of 1.5 points: within 3 of these."""
    features, peaks = _samples(400, seed=2)
    unseen, expected = _samples(2000, seed=3)
    predictor = BoostingPredictor(["nodes", "edges"], coverage=0.9).fit(features, peaks)
    assert 0.855 <= (expected <= predictor.upper(unseen)).mean() <= 0.96


def test_same_samples_same_predictions() -> None:
    features, peaks = _samples(60, seed=4)
    one, other = (BoostingPredictor(["nodes", "edges"]).fit(features, peaks) for _ in range(2))
    np.testing.assert_array_equal(one.predict(features), other.predict(features))
    assert one.predict(features[0]) == one.predict(features)[0]
    assert one.margin.factor == other.margin.factor
    assert one.pieces is None


def test_few_samples() -> None:
    predictor = BoostingPredictor(["nodes", "edges"]).fit([[1, 1], [2, 2]], [100, 200])
    assert 100 <= predictor.predict([1, 1]) <= 200


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`quantile` must lie in \(0, 1\), but got 1. HINT: "):
        BoostingPredictor(["nodes"], quantile=1)
    with pytest.raises(ValueError, match=r"`num_rounds` must be at least 1, but got 0. HINT: "):
        BoostingPredictor(["nodes"], num_rounds=0)
