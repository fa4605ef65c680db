from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.memory.predictors import AnalyticPredictor

PIECES = np.array([[0.0, 800, 40], [1_000_000, 300, 44], [50_000, 820, 8]])


def _rows(num_rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 10_000, (num_rows, 2)).astype(float)


def _peaks(rows: np.ndarray) -> np.ndarray:
    return np.array([max(c + a * n + b * e for c, a, b in PIECES) for n, e in rows])


def _predictor(**settings: float) -> AnalyticPredictor:
    return AnalyticPredictor(PIECES, feature_names=["nodes", "edges"], **settings)


def test_predicts_the_largest_piece_without_a_fit() -> None:
    rows = _rows(100)
    predictor = _predictor()
    assert predictor.is_fitted
    np.testing.assert_array_equal(predictor.predict(rows), _peaks(rows))
    assert [predictor.predict(row) for row in rows] == _peaks(rows).tolist()
    np.testing.assert_array_equal(predictor.pieces, [*PIECES.tolist(), [0, 0, 0]])


def test_a_zero_row_is_kept_and_growth_is_never_negative() -> None:
    predictor = AnalyticPredictor([[-100, 1], [0, 0]], feature_names=["nodes"])
    assert predictor.pieces.shape == (2, 2)
    assert predictor.predict([50]) == 0
    assert predictor.predict([150]) == 50


def test_pieces_cannot_be_changed_from_outside() -> None:
    pieces = PIECES.copy()
    predictor = AnalyticPredictor(pieces, feature_names=["nodes", "edges"])
    pieces[:] = 0
    np.testing.assert_array_equal(predictor.pieces[:3], PIECES)
    with pytest.raises(ValueError, match="read-only"):
        predictor.pieces[0] = 1


def test_exact_samples_leave_the_bound_at_the_prediction() -> None:
    predictor = _predictor()
    rows = _rows(60)
    predictor.fit(rows[:30], _peaks(rows[:30]))
    for row, peak in zip(rows[30:], _peaks(rows[30:]), strict=True):
        predictor.update(row, peak)
    assert predictor.margin.factor == 1.0
    np.testing.assert_array_equal(predictor.upper(rows), _peaks(rows))
    assert predictor.is_exact
    assert not predictor.has_drifted
    assert predictor.drift == 0.0
    assert predictor.num_samples == 60


def test_drift_is_seen_after_twenty_samples_and_never_fitted() -> None:
    predictor = _predictor()
    rows = _rows(20)
    for number, (row, peak) in enumerate(zip(rows, _peaks(rows), strict=True)):
        assert not predictor.has_drifted
        assert predictor.is_exact == (number == 0)
        predictor.update(row, 1.3 * peak)
    assert predictor.has_drifted
    assert predictor.drift == pytest.approx(0.3)
    np.testing.assert_array_equal(predictor.predict(rows), _peaks(rows))
    assert predictor.margin.factor >= 1.3
    assert predictor.num_samples == 20
    predictor.update(rows[0], _peaks(rows[:1])[0])
    assert not predictor.has_drifted
    assert not predictor.is_exact


def test_errors_within_the_tolerance_are_no_drift() -> None:
    predictor = _predictor(tolerance=0.01)
    rows = _rows(40)
    for row, peak in zip(rows, _peaks(rows), strict=True):
        predictor.update(row, 1.005 * peak)
    assert predictor.is_exact
    assert not predictor.has_drifted
    assert predictor.margin.factor == pytest.approx(1.005)


def test_state_brings_its_pieces() -> None:
    predictor = _predictor(fingerprint="a")
    rows = _rows(10)
    predictor.fit(rows, 1.1 * _peaks(rows))
    other = AnalyticPredictor([[0, 1, 1]], feature_names=["nodes", "edges"], fingerprint="a")
    other.load_state_dict(predictor.state_dict())
    np.testing.assert_array_equal(other.pieces, predictor.pieces)
    assert other.margin.factor == pytest.approx(1.1)
    stranger = AnalyticPredictor([[0, 1, 1]], feature_names=["nodes", "edges"], fingerprint="b")
    with pytest.warns(UserWarning, match="`fingerprint`"):
        stranger.load_state_dict(predictor.state_dict())
    np.testing.assert_array_equal(stranger.pieces, [[0, 1, 1], [0, 0, 0]])


def test_bad_pieces() -> None:
    for pieces in ([[1, 2]], [1, 2, 3], np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"`pieces` must be of shape \(K, P \+ 1\) with P \+ 1 = 3, but .* HINT: "):
            AnalyticPredictor(pieces, feature_names=["nodes", "edges"])
    with pytest.raises(ValueError, match=r"`pieces` must be finite, but hold nan. HINT: "):
        AnalyticPredictor([[1, 2, np.nan]], feature_names=["nodes", "edges"])
