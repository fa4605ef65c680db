from __future__ import annotations

import io
import math
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lightning_gnnopt.memory.predictors import LinearPredictor, Predictor


class _Mean(Predictor):
    """Predicts the mean; each held-out prediction is the mean of the others."""

    kind: ClassVar[str] = "mean"

    def __init__(self, **settings: Any) -> None:
        super().__init__(["nodes"], **settings)
        self.fitted_to: list[int] = []

    def _fit(self, features: np.ndarray, peak_bytes: np.ndarray) -> np.ndarray:
        self.fitted_to.append(len(peak_bytes))
        self.mean = peak_bytes.mean()
        return (peak_bytes.sum() - peak_bytes) / (len(peak_bytes) - 1)

    def _predict(self, features: np.ndarray) -> np.ndarray:
        return np.full(len(features), self.mean)


class _Above(_Mean):
    _is_centred: ClassVar[bool] = False


def test_margin_is_calibrated_by_held_out_predictions() -> None:
    predictor = _Mean(coverage=0.75).fit(np.zeros((4, 1)), [90.0, 110.0, 100.0, 100.0])
    assert predictor.margin.factor == pytest.approx(110 / (290 / 3))
    assert predictor.upper([1.0]) == pytest.approx(100 * 110 / (290 / 3))
    assert predictor.upper([1.0], 0.5) == pytest.approx(100 * 1.0)
    np.testing.assert_allclose(predictor.upper(np.zeros((3, 1))), np.full(3, 100 * 110 / (290 / 3)))


def test_one_row_gives_a_float_and_rows_give_an_array() -> None:
    predictor = _Mean().fit([[1], [2]], [10, 20])
    assert isinstance(predictor.predict([3]), float)
    assert predictor.predict([[3], [4]]).shape == (2,)
    assert predictor.predict(np.zeros((0, 1))).shape == (0,)


def test_predictions_are_never_negative() -> None:
    line = LinearPredictor(["nodes"]).fit([[10], [20]], [100, 200 + 1000])
    assert line.predict([5]) == 0.0
    np.testing.assert_allclose(line.predict([[5], [20]]), [0, 1200], atol=1e-3)
    np.testing.assert_array_equal(line.predict([5.0]), line.predict(np.array([5.0])))


def test_unfitted_predictor_says_so() -> None:
    predictor = _Mean()
    assert not predictor.is_fitted
    with pytest.raises(RuntimeError, match=r"mean predictor must be fitted .*, but has 0 samples. HINT: .* 8 times"):
        predictor.predict([1])
    with pytest.raises(RuntimeError, match="must be fitted"):
        predictor.upper([1])
    with pytest.raises(RuntimeError, match="must be fitted"):
        LinearPredictor(["nodes"]).predict(np.ones(1))
    assert LinearPredictor(["nodes"]).pieces is None


def test_updates_alone_fit_it_at_the_eighth() -> None:
    predictor = _Mean()
    for peak in range(7):
        predictor.update([1], peak)
    assert not predictor.is_fitted
    predictor.update([1], 7)
    assert predictor.is_fitted
    assert predictor.predict([1]) == 3.5
    assert predictor.fitted_to == [8]


def test_refit_at_twice_the_samples_while_errors_are_small() -> None:
    predictor = _Mean().fit(np.zeros((16, 1)), np.full(16, 100.0))
    for _ in range(47):
        predictor.update([0], 100.0)
    assert predictor.fitted_to == [16, 32]
    predictor.update([0], 100.0)
    assert predictor.fitted_to == [16, 32, 64]


def test_refit_at_a_quarter_once_an_error_has_left_the_tolerance() -> None:
    predictor = _Mean(tolerance=0.01).fit(np.zeros((40, 1)), np.full(40, 100.0))
    predictor.update([0], 102.0)
    for _ in range(8):
        predictor.update([0], 100.0)
    assert predictor.fitted_to == [40]
    predictor.update([0], 100.0)
    assert predictor.fitted_to == [40, 50]
    assert predictor.predict([0]) == pytest.approx(100 + 2 / 50)


@pytest.mark.parametrize(("kind", "peak", "keeps"), [(_Mean, 130, 20), (_Mean, 70, 20), (_Above, 130, 20)])
def test_twenty_errors_on_one_side_mean_another_step(kind: type[_Mean], peak: float, keeps: int) -> None:
    predictor = kind().fit(np.zeros((400, 1)), np.full(400, 100.0))
    for _ in range(19):
        predictor.update([0], peak)
    assert predictor.predict([0]) == 100.0
    predictor.update([0], peak)
    assert predictor.num_samples == keeps
    assert predictor.predict([0]) == peak
    assert predictor.margin.factor == 1.0


def test_a_quantile_may_stay_above() -> None:
    predictor = _Above().fit(np.zeros((400, 1)), np.full(400, 100.0))
    for _ in range(20):
        predictor.update([0], 70)
    assert predictor.num_samples == 420


def test_errors_on_both_sides_keep_the_table() -> None:
    predictor = _Mean().fit(np.zeros((400, 1)), np.full(400, 100.0))
    for step in range(60):
        predictor.update([0], 130 if step % 2 else 70)
    assert predictor.num_samples == 460


def test_window_keeps_the_latest_samples() -> None:
    predictor = _Mean(window=10).fit(np.zeros((30, 1)), np.arange(30.0))
    assert predictor.num_samples == 10
    assert predictor.predict([0]) == np.arange(20, 30).mean()


def test_update_is_predicted_before_it_is_learned() -> None:
    predictor = _Mean(coverage=0.9, window=50).fit(np.zeros((9, 1)), np.full(9, 100.0))
    predictor.update([0], 150.0)
    assert predictor.margin.num_samples == 10
    assert predictor.margin.factor == pytest.approx(1.5)
    predictor.update([0], 150.0, accepted=False)
    assert predictor.margin.debt == pytest.approx(0.8 + 0.1)  # the accepted one is a miss


def test_caller_may_reuse_its_row() -> None:
    line = LinearPredictor(["nodes"])
    row = np.zeros(1)
    for nodes in range(8):
        row[0] = nodes
        line.update(row, 5.0 * nodes)
    assert line.predict([100]) == pytest.approx(500)


def test_caller_may_reuse_its_table() -> None:
    features = np.arange(10.0)[:, None]
    line = LinearPredictor(["nodes"]).fit(features, 5 * features[:, 0])
    features[:] = -1
    np.testing.assert_array_equal(line.state_dict()["features"][:, 0], np.arange(10))


def test_state_travels_as_plain_tensors_and_refits() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(10, 100, (30, 2))
    first = LinearPredictor(["nodes", "edges"], fingerprint="abc").fit(features, features @ [3, 5] + 7)
    for row in features[:5]:
        first.update(row, row @ [3, 5] + 400)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = LinearPredictor(["nodes", "edges"], fingerprint="abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.num_samples == 35
    assert second.predict(features[7]) == pytest.approx(first.predict(features[7]), rel=1e-9)
    assert second.margin.debt == first.margin.debt > 0
    assert second.state_dict()["accepted"].sum() == 5


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (LinearPredictor(["nodes"], fingerprint="b"), "fingerprint"),
        (LinearPredictor(["edges"], fingerprint="a"), "feature_names"),
        (_Mean(fingerprint="a"), "kind"),
    ],
)
def test_state_of_another_model_is_discarded(other: Predictor, name: str) -> None:
    state = other.fit([[1], [2]], [1, 2]).state_dict()
    predictor = LinearPredictor(["nodes"], fingerprint="a")
    with pytest.warns(UserWarning, match=f"were discarded: their `{name}` is"):
        predictor.load_state_dict(state)
    assert predictor.num_samples == 0


def test_state_without_samples_leaves_it_unfitted() -> None:
    predictor = LinearPredictor(["nodes", "edges"])
    predictor.load_state_dict(LinearPredictor(["nodes", "edges"]).state_dict())
    assert not predictor.is_fitted
    damaged = {**predictor.state_dict(), "features": torch.ones(3, 2)}
    with pytest.raises(ValueError, match=r"`peak_bytes` must be of shape \(3,\), but is of shape \(0,\)"):
        predictor.load_state_dict(damaged)


@pytest.mark.parametrize("peak", [-1.0, math.nan, math.inf])
def test_impossible_peaks_are_refused(peak: float) -> None:
    predictor = LinearPredictor(["nodes"])
    with pytest.raises(ValueError, match=r"`peak_bytes` must be finite and not negative, but holds .* HINT: "):
        predictor.update([1], peak)
    with pytest.raises(ValueError, match="`peak_bytes` must be finite"):
        predictor.fit([[1], [2]], [1, peak])
    assert predictor.num_samples == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_impossible_features_are_refused(value: float) -> None:
    predictor = LinearPredictor(["nodes"]).fit([[1], [2]], [1, 2])
    for call in (
        lambda: predictor.predict(np.array([value])),
        lambda: predictor.predict([value]),
        lambda: predictor.update([value], 1),
        lambda: predictor.fit([[1], [value]], [1, 2]),
    ):
        with pytest.raises(ValueError, match=r"`features` must be finite, but holds .* HINT: "):
            call()


def test_wrong_shapes_are_refused() -> None:
    predictor = LinearPredictor(["nodes", "edges"])
    with pytest.raises(
        ValueError, match=r"of shape \(S, P\) with P = 2 \(nodes, edges\), but is of shape \(3, 3\). HINT"
    ):
        predictor.fit(np.ones((3, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"`peak_bytes` must be of shape \(3,\), but is of shape \(2,\). HINT: "):
        predictor.fit(np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"at least 2 samples, but got 1. HINT: "):
        predictor.fit(np.ones((1, 2)), np.ones(1))
    with pytest.raises(ValueError, match=r"of shape \(P,\) with P = 2"):
        predictor.update(np.ones((1, 2)), 1)
    predictor.fit(np.ones((2, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"of shape \(P,\) or \(S, P\) with P = 2"):
        predictor.predict(np.ones(3))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`feature_names` must be different names, at least one, but got \(\). HINT: "
    ):
        LinearPredictor([])
    with pytest.raises(ValueError, match="`feature_names` must be different"):
        LinearPredictor(["nodes", "nodes"])
    with pytest.raises(ValueError, match=r"`tolerance` must be a number from 0 up, but got -1. HINT: "):
        LinearPredictor(["nodes"], tolerance=-1)
    with pytest.raises(ValueError, match="`coverage`"):
        LinearPredictor(["nodes"], coverage=1)
