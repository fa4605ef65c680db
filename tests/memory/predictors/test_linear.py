from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.memory.predictors import LinearPredictor

NAMES = ["nodes_0", "nodes_1", "edges_1"]


def _samples(num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.uniform(100, 10_000, (num_samples, 3))
    return features, 1e6 + features @ [2000, 700, 90] + rng.normal(0, 2e4, num_samples)


def _reference(features: np.ndarray, peaks: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    design = np.column_stack([np.ones(len(features)), features])
    weights = np.ones(len(peaks)) if weights is None else np.sqrt(weights)
    return np.linalg.lstsq(design * weights[:, None], peaks * weights, rcond=None)[0]


def test_fit_is_ordinary_least_squares() -> None:
    features, peaks = _samples(40)
    line = LinearPredictor(NAMES).fit(features, peaks)
    pieces = line.pieces
    assert pieces is not None
    np.testing.assert_allclose(pieces, [_reference(features, peaks), np.zeros(4)], rtol=1e-6)


def test_pieces_and_predictions_agree() -> None:
    features, peaks = _samples(40)
    line = LinearPredictor(NAMES).fit(features, peaks)
    expected = (np.column_stack([np.ones(40), features]) @ line.pieces.T).max(axis=1)
    np.testing.assert_allclose(line.predict(features), expected, rtol=1e-12)
    assert line.predict(features[3]) == pytest.approx(expected[3], rel=1e-12)
    assert line.predict(features[3].astype(np.float32)) == pytest.approx(expected[3], rel=1e-6)
    assert line.predict(features[3].tolist()) == pytest.approx(expected[3], rel=1e-12)


@pytest.mark.parametrize("forgetting", [1.0, 0.9])
def test_updates_are_recursive_least_squares(forgetting: float) -> None:
    features, peaks = _samples(200)
    line = LinearPredictor(NAMES, forgetting=forgetting, tolerance=1.0).fit(features[:120], peaks[:120])
    for row, peak in zip(features[120:], peaks[120:], strict=True):
        line.update(row, peak)
    assert line._num_new == 80  # not fitted again in between
    weights = forgetting ** np.arange(199.0, -1, -1)
    np.testing.assert_allclose(line.pieces[0], _reference(features, peaks, weights), rtol=1e-4)


@pytest.mark.parametrize("forgetting", [1.0, 0.95])
def test_margin_is_that_of_leaving_one_out(forgetting: float) -> None:
    features, peaks = _samples(25)
    line = LinearPredictor(NAMES, coverage=0.9, forgetting=forgetting).fit(features, peaks)
    weights = forgetting ** np.arange(24.0, -1, -1)
    ratios = []
    for left in range(25):
        others = np.arange(25) != left
        coefficients = _reference(features[others], peaks[others], weights[others])
        ratios.append(peaks[left] / (coefficients[0] + features[left] @ coefficients[1:]))
    assert line.margin.factor == pytest.approx(sorted(ratios)[23], rel=1e-7)  # rank ceil(26 * 0.9)


def test_as_many_samples_as_coefficients_are_left_out_in_earnest() -> None:
    features, peaks = _samples(4)
    line = LinearPredictor(NAMES, coverage=0.7).fit(features, peaks)
    np.testing.assert_allclose(line.predict(features), peaks, rtol=1e-6)
    predictions = []
    for left in range(4):
        others = np.arange(4) != left
        mean, scale = features.mean(0), features.std(0)
        inputs = (features - mean) / scale
        design = np.column_stack([np.ones(3), inputs[others]])
        # The limit of a ridge that spares the constant: the smallest slopes that go through all three samples.
        slopes = np.linalg.pinv(design[:, 1:] - design[:, 1:].mean(0)) @ (peaks[others] - peaks[others].mean())
        predictions.append(peaks[others].mean() + (inputs[left] - inputs[others].mean(0)) @ slopes)
    ratios = peaks / np.array(predictions)
    assert line.margin.factor == pytest.approx(max(1, sorted(ratios)[3]), rel=1e-4)


def test_dependent_and_constant_columns() -> None:
    rng = np.random.default_rng(1)
    nodes = rng.uniform(100, 1000, 30)
    features = np.column_stack([np.full(30, 64.0), nodes, 2 * nodes])
    line = LinearPredictor(NAMES).fit(features, 5e5 + 100 * nodes)
    np.testing.assert_allclose(line.predict(features), 5e5 + 100 * nodes, rtol=1e-7)
    slopes = line.pieces[0, 1:]
    assert slopes[0] == pytest.approx(0, abs=1e-6)
    # In standardised columns the smallest coefficients are equal ones: half of the slope to each.
    np.testing.assert_allclose(slopes[1:], [50, 25], rtol=1e-4)


def test_exact_data_need_next_to_no_margin() -> None:
    features, _ = _samples(50)
    line = LinearPredictor(NAMES).fit(features, 1e6 + features @ [2000, 700, 90])
    assert line.margin.factor == pytest.approx(1, abs=1e-8)


def test_totals_only_is_a_line_in_all_nodes_and_all_edges() -> None:
    names = ["nodes_0", "nodes_1[paper]", "edges_1", "edges_2", "loops_1"]
    rng = np.random.default_rng(2)
    features = rng.uniform(10, 1000, (30, 5))
    peaks = features @ rng.uniform(10, 50, 5)
    line = LinearPredictor(names, totals_only=True).fit(features, peaks)
    totals = np.column_stack([features[:, :2].sum(1), features[:, 2:4].sum(1)])
    constant, per_node, per_edge = _reference(totals, peaks)
    np.testing.assert_allclose(
        line.pieces[0], [constant, per_node, per_node, per_edge, per_edge, 0], rtol=1e-6, atol=1e-6
    )
    line.update(features[0], peaks[0])
    assert line.pieces.shape == (2, 6)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"`totals_only` needs columns named edges_\*, but there are nodes_0. HINT: "):
        LinearPredictor(["nodes_0"], totals_only=True)
    with pytest.raises(ValueError, match=r"`forgetting` must lie in \(0, 1\], but got 0. HINT: "):
        LinearPredictor(NAMES, forgetting=0)
