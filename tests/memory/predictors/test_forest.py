from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from lightning_gnnopt.memory.predictors import ForestPredictor

NAMES = ["nodes_0", "nodes_1", "edges_1", "hidden"]


def _samples(num_samples: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    counts = rng.uniform(100, 1000, (num_samples, 3))
    hidden = rng.choice([64.0, 128.0, 256.0], num_samples)
    return np.column_stack([counts, hidden]), (counts @ [1, 1, 0.5]) * hidden * 4


def test_is_the_forest_of_the_thesis() -> None:
    features, peaks = _samples()
    predictor = ForestPredictor(NAMES, num_trees=30, coverage=0.9).fit(features, peaks)
    totals = np.column_stack([features[:, :2].sum(1), features[:, 2:]])
    reference = RandomForestRegressor(30, oob_score=True, random_state=0).fit(totals, peaks)
    np.testing.assert_array_equal(predictor.predict(features), reference.predict(totals))
    assert predictor.predict(features[0]) == reference.predict(totals[:1])[0]
    # The margin is that of the samples which a tree has not seen: rank ceil(121 * 0.9).
    assert predictor.margin.factor == pytest.approx(sorted(peaks / reference.oob_prediction_)[108])
    assert predictor.pieces is None


def test_tells_hidden_sizes_apart() -> None:
    features, peaks = _samples()
    predictor = ForestPredictor(NAMES).fit(features, peaks)
    small, large = ([500, 500, 500, hidden] for hidden in (64, 256))
    assert predictor.predict(large) > 2 * predictor.predict(small)


def test_columns_as_they_are() -> None:
    features, peaks = _samples()
    predictor = ForestPredictor(NAMES, num_trees=20, totals_only=False).fit(features, peaks)
    reference = RandomForestRegressor(20, random_state=0).fit(features, peaks)
    np.testing.assert_array_equal(predictor.predict(features), reference.predict(features))


def test_is_fitted_again_as_samples_come_in() -> None:
    features, peaks = _samples(40)
    predictor = ForestPredictor(NAMES, num_trees=20)
    for row, peak in zip(features, peaks, strict=True):
        predictor.update(row, peak)
    assert predictor.predict(features).max() > 0.8 * peaks.max()
    twin = ForestPredictor(NAMES, num_trees=20)
    for row, peak in zip(features, peaks, strict=True):
        twin.update(row, peak)
    np.testing.assert_array_equal(twin.predict(features), predictor.predict(features))


def test_too_few_trees() -> None:
    with pytest.raises(ValueError, match=r"`num_trees` must be at least 20, but got 5. HINT: "):
        ForestPredictor(NAMES, num_trees=5)
