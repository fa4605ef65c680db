from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from lightning_gnnopt.memory.drawing import look_ahead
from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.footprint import UNSURE, Ahead, Footprint
from lightning_gnnopt.memory.predictors import AnalyticPredictor, LinearPredictor
from tests.memory.runs import make_datamodule

NAMES = ("nodes_0", "nodes_1", "edges_1")
PIECES = {
    "step": [[100.0, 1, 2, 3], [0.0, 9, 1, 3]],
    "first": [[50.0, 1, 2, 4]],
    "last": [[10.0, 2, 2, 3], [1000.0, 0, 0, 0]],
}
BATCH_ROW = np.array([7.0, 4, 4, 16])


def reader() -> FeatureReader:
    example = Data(num_nodes=3, batch_size=1)
    example.edge_index = make_datamodule().data.edge_index[:, :0]
    return FeatureReader(example)


def footprint(
    *,
    ahead: Ahead | None = None,
    kinds: Sequence[str] = ("step",),
    part_kinds: Sequence[str] = ("step",),
    factor: float = 1.0,
    reserved_factor: float = 1.0,
) -> Footprint:
    predictors = {kind: AnalyticPredictor(pieces, feature_names=NAMES) for kind, pieces in PIECES.items()}
    for predictor in predictors.values():
        predictor.margin.replace([100.0, 100.0], [100.0, 100.0 * factor])
    return Footprint(
        reader=reader(),
        predictors=predictors,
        batch_row=BATCH_ROW,
        held_bytes=5000,
        ahead=Ahead() if ahead is None else ahead,
        kinds=kinds,
        part_kinds=part_kinds,
        reserved_factor=reserved_factor,
    )


def growth_by_hand(row: Sequence[float], kinds: Sequence[str]) -> float:
    return max(c + a * row[0] + b * row[1] + d * row[2] for kind in kinds for c, a, b, d in PIECES[kind])


ROW = np.array([10.0, 20.0, 50.0])  # batch: 7 + 40 + 80 + 800 = 927; step: 100 + 10 + 40 + 150 = 300


def test_bytes_by_hand() -> None:
    model = footprint()
    assert model.batch_bytes(ROW) == 927
    assert model.constant_bytes(ROW) == 5927
    assert model.predict(ROW) == model.upper(ROW) == 5927 + 300
    assert model.predict(ROW, kind="first") == 5927 + 50 + 10 + 40 + 200
    assert model.predict(ROW, kind="last") == 5927 + 1000


def test_the_costliest_kind_counts() -> None:
    model = footprint(kinds=("step", "first", "last"))
    assert model.predict(ROW) == model.upper(ROW) == 5927 + 1000
    row = np.array([10.0, 200.0, 500.0])  # batch: 7 + 40 + 800 + 8000; step: 2010 or 1790; first: 2460
    assert footprint(kinds=("step", "first")).predict(row) == 5000 + 8847 + 2460


def test_the_margin_is_of_the_growth_alone() -> None:
    model = footprint(factor=1.5)
    assert model.predict(ROW) == 6227
    assert model.upper(ROW) == pytest.approx(5927 + 1.5 * 300)
    assert model.upper_of_part(ROW, ROW / 2) == pytest.approx(5927 + 467 + 1.5 * 200)


def test_batches_ahead() -> None:
    assert [Ahead().nbytes(100.0), Ahead(batches=3).nbytes(100.0)] == [0, 300]
    limited = Ahead(batches=3, max_bytes=250)
    assert [limited.nbytes(50.0), limited.nbytes(100.0)] == [150, 250]
    # A larger one was looked at: those ahead may be a tenth larger than this one, but no larger than that.
    seen = Ahead(batches=3, least_bytes=80.0)
    assert [seen.nbytes(size) for size in (50.0, 76.0, 100.0)] == pytest.approx([165, 240, 300])
    assert Ahead(batches=3, least_bytes=80.0, max_bytes=160).nbytes(50.0) == 160
    assert footprint(ahead=Ahead(batches=3)).predict(ROW) == 5000 + 4 * 927 + 300
    assert footprint(ahead=Ahead(batches=3, max_bytes=1000)).predict(ROW) == 5000 + 927 + 1000 + 300


def test_bounds_are_what_must_be_reserved() -> None:
    model = footprint(reserved_factor=1.25, ahead=Ahead(batches=1))
    assert model.predict(ROW) == 5000 + 2 * 927 + 300  # as it is measured
    assert model.constant_bytes(ROW) == 5000 + 2 * 927
    assert model.upper(ROW) == 1.25 * model.predict(ROW)
    part = np.array([5.0, 8.0, 20.0])
    assert model.upper_of_part(ROW, part) == 1.25 * (5000 + 2 * 927 + 379 + 181)
    model.reserve_bytes = 100
    assert model.upper(ROW) == 1.25 * (5000 + 2 * 927 + 300 + 100)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), st.floats(1, 2), st.integers(0, 3))
def test_the_factor_multiplies_all_bounds_and_one_changes_no_bit(row: list[float], factor: float, batches: int) -> None:
    features = np.array(row)
    kinds = ("step", "first")
    plain = footprint(factor=1.1, ahead=Ahead(batches=batches), kinds=kinds, part_kinds=kinds)
    held = plain.held_bytes + (1 + batches) * plain.batch_bytes(features)
    growth = max(float(plain.predictors[kind].upper(features)) for kind in kinds)
    assert plain.upper(features) == pytest.approx(held + growth, rel=1e-12)
    times = footprint(factor=1.1, ahead=Ahead(batches=batches), kinds=kinds, part_kinds=kinds, reserved_factor=factor)
    one = footprint(factor=1.1, ahead=Ahead(batches=batches), kinds=kinds, part_kinds=kinds, reserved_factor=1.0)
    assert one.upper(features) == plain.constant_bytes(features) + growth
    assert times.upper(features) == factor * one.upper(features)
    assert times.upper_of_part(features, features / 2) == factor * one.upper_of_part(features, features / 2)
    assert times.predict(features) == one.predict(features)
    pieces, plain_pieces = times.pieces(), plain.pieces()
    assert pieces is not None
    assert plain_pieces is not None
    np.testing.assert_array_equal(pieces, factor * plain_pieces)
    assert (pieces[:, 0] + pieces[:, 1:] @ features).max() == pytest.approx(times.upper(features))


def test_a_part_is_a_copy_beside_the_whole() -> None:
    part = np.array([5.0, 8.0, 20.0])  # itself 7 + 20 + 32 + 320 = 379; step: 100 + 5 + 16 + 60 = 181
    assert footprint().upper_of_part(ROW, part) == 5000 + 927 + 379 + 181
    accumulated = footprint(part_kinds=("first", "last"), ahead=Ahead(batches=1))
    assert accumulated.upper_of_part(ROW, part) == 5000 + 2 * 927 + 379 + 1000


rows = st.lists(st.integers(0, 1000), min_size=3, max_size=3)


@settings(deadline=None, max_examples=50)
@given(rows, st.integers(0, 4), st.floats(1, 2), st.sampled_from([("step",), ("step", "first", "last")]))
def test_pieces_are_the_upper_bound(row: list[int], batches: int, factor: float, kinds: tuple[str, ...]) -> None:
    features = np.array(row, np.float64)
    model = footprint(ahead=Ahead(batches=batches), kinds=kinds, factor=factor)
    model.reserve_bytes = 300
    pieces = model.pieces()
    assert pieces is not None
    by_pieces = max(piece[0] + piece[1:] @ features for piece in pieces)
    batch = 7 + 4 * row[0] + 4 * row[1] + 16 * row[2]
    before = 5000 + (1 + batches) * batch
    assert model.predict(features) == pytest.approx(before + growth_by_hand(row, kinds))
    expected = before + 300 + factor * growth_by_hand(row, kinds)
    assert by_pieces == pytest.approx(expected)
    assert model.upper(features) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(rows, st.integers(0, 4))
def test_what_is_ahead_has_a_limit_in_the_bound(row: list[int], batches: int) -> None:
    features = np.array(row, np.float64)
    batch = 7 + 4 * row[0] + 4 * row[1] + 16 * row[2]
    model = footprint(ahead=Ahead(batches=batches, max_bytes=9000))
    expected = 5000 + batch + min(batches * batch, 9000) + growth_by_hand(row, ("step",))
    assert model.upper(features) == pytest.approx(expected)


def test_few_samples_widen_the_bound() -> None:
    """Without 999 samples nobody can state 0.999."""
    rng = np.random.default_rng(0)
    model, uppers = footprint(), []
    for num_samples in (10, 100, 2000):
        features = rng.integers(1, 100, (num_samples, 3)).astype(float)
        linear = LinearPredictor(NAMES).fit(features, 10 + features @ [1.0, 2.0, 3.0])
        model.predictors = {"step": linear}
        uppers.append(model.upper(ROW) - model.constant_bytes(ROW))
        expected = 210 * (1 + UNSURE * np.sqrt(max(0, 1 - min(num_samples / (num_samples + 1), 0.999) / 0.999)))
        assert uppers[-1] == pytest.approx(expected, rel=1e-6)
    assert uppers[0] > uppers[1] > uppers[2] == pytest.approx(210)


def test_pieces_are_copies() -> None:
    model = footprint(ahead=Ahead(batches=2), factor=1.25)
    before = model.upper(ROW)
    pieces = model.pieces()
    assert pieces is not None
    pieces += 1e9
    assert model.upper(ROW) == before


def test_what_has_no_pieces_gives_none() -> None:
    linear = LinearPredictor(NAMES)
    rng = np.random.default_rng(0)
    features = rng.integers(1, 100, (40, 3)).astype(float)
    model = Footprint(reader=reader(), predictors={"step": linear}, batch_row=BATCH_ROW, held_bytes=1, kinds=("step",))
    assert not model.is_ready
    linear.fit(features, 10 + features @ [1.0, 2.0, 3.0])
    assert model.is_ready
    forest = footprint()
    forest.predictors = {"step": _NoPieces(PIECES["step"], feature_names=NAMES)}
    assert forest.pieces() is None


class _NoPieces(AnalyticPredictor):
    @property
    def pieces(self) -> None:  # type: ignore[override]
        return None


def test_features_are_read_by_the_reader() -> None:
    batch = Data(num_nodes=30, batch_size=10, edge_index=make_datamodule().data.edge_index[:, :50] % 30)
    np.testing.assert_array_equal(footprint().features(batch), ROW)


def test_what_is_looked_at_ahead_does_not_depend_on_the_epoch() -> None:
    """Else a resumed run would find other batches too large than the run that it goes on with."""
    loader = make_datamodule().train_dataloader()
    of_net = Footprint(reader=FeatureReader(next(iter(loader))), predictors={}, batch_row=np.ones(1), held_bytes=0)
    of_net.batch_row = np.ones(1 + len(of_net.features(loader.sample(0))))
    sizes = []
    for epoch in (0, 1, 2):
        loader.set_epoch(epoch)
        sizes.append([row.tolist() for row in look_ahead(loader, of_net)])
        largest = max(sum(row) for row in sizes[0])
        assert of_net.ahead.least_bytes == 1 + largest
    assert sizes[0] == sizes[1] == sizes[2]
    assert of_net.features(loader.sample(0, epoch=0)).tolist() != of_net.features(loader.sample(0, epoch=1)).tolist()
