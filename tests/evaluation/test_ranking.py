"""The ranking against a brute-force sort, and against Lightning's own ModelCheckpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gnnopt.evaluation.messages import Verdict
from lightning_gnnopt.evaluation.ranking import Ranking

SCORES = st.sampled_from([0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan])


def verdict(score: float | None, step: int = 0) -> Verdict:
    metrics = {} if score is None else {"m": torch.tensor(score)}
    return Verdict(step=step, epoch=0, metrics=metrics, logged={}, shown={}, started_s=0.0, ended_s=0.0)


def is_better(a: float, b: float, mode: str) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(b) and not math.isnan(a)
    return a < b if mode == "min" else a > b


def places(scores: list[float], mode: str) -> list[int]:
    """For each score how many are ahead of it: the better ones, and the equal ones that came earlier."""
    return [
        sum(
            is_better(other, score, mode) or (j < i and not is_better(score, other, mode))
            for j, other in enumerate(scores)
            if j != i
        )
        for i, score in enumerate(scores)
    ]


@settings(max_examples=200, deadline=None)
@given(scores=st.lists(SCORES, max_size=12), mode=st.sampled_from(["min", "max"]), k=st.integers(-1, 4))
def test_equals_a_brute_force_ranking(scores: list[float], mode: str, k: int) -> None:
    ranking = Ranking(monitor="m", mode=mode, save_top_k=k)
    fallen: set[str] = set()
    for i, score in enumerate(scores):
        so_far = places(scores[: i + 1], mode)
        limit = len(scores) + 1 if k == -1 else k
        expected = {f"{j}" for j, place in enumerate(so_far) if place < limit}
        assert ranking.judge(verdict(score, i)) == (f"{i}" in expected)
        before = set(ranking.kept) | {f"{i}"}
        out = ranking.enter(Path(f"{i}"), verdict(score, i))
        assert {str(path) for path in out} == before - expected
        fallen |= {str(path) for path in out}
        assert set(ranking.kept) == expected
        assert list(ranking.kept) == sorted(expected, key=lambda name: so_far[int(name)])
        if expected:
            best = so_far.index(0)
            assert ranking.best_path == f"{best}"
            assert ranking.best_score == scores[best] or (math.isnan(scores[best]) and math.isnan(ranking.best_score))
        else:
            assert (ranking.best_path, ranking.best_score) == ("", None)
    assert fallen | set(ranking.kept) == {f"{i}" for i in range(len(scores))}


class Scored(LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> None:
        return None

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(1, 1))


@pytest.mark.parametrize(("mode", "k"), [("max", 1), ("min", 2), ("max", 3)])
@pytest.mark.parametrize("has_ties", [False, True])
def test_keeps_what_model_checkpoint_keeps(tmp_path: Path, mode: str, k: int, has_ties: bool) -> None:
    scores = [0.5, 0.5, 0.25, 0.75, 0.75, 0.1, 0.5, 0.9, 0.25, 0.25]
    if not has_ties:
        scores = [score + 0.01 * ((7 * step) % 10 - 5) for step, score in enumerate(scores)]
        assert len(set(scores)) == len(scores)
    reference = ModelCheckpoint(tmp_path, filename="{step}", monitor="m", mode=mode, save_top_k=k)
    trainer = Trainer(
        max_epochs=0, logger=False, callbacks=[reference], enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Scored())
    ranking = Ranking(monitor="m", mode=mode, save_top_k=k)
    for step, score in enumerate(scores):
        candidates = {"m": torch.tensor(score), "epoch": torch.tensor(0), "step": torch.tensor(step)}
        reference._save_topk_checkpoint(trainer, candidates)
        if ranking.judge(verdict(score)):
            ranking.enter(Path(f"step={step}.ckpt"), verdict(score))
        kept = {Path(path).name: float(value) for path, value in reference.best_k_models.items()}
        assert sorted(ranking.kept.values()) == sorted(kept.values())
        assert ranking.best_score == float(reference.best_model_score)
        if not has_ties:  # of equal ones that it keeps, ModelCheckpoint lets the earlier one go first
            assert ranking.kept == kept
            assert ranking.best_path == Path(reference.best_model_path).name


def test_without_a_monitor_the_latest_wins() -> None:
    ranking = Ranking(monitor=None, mode="max", save_top_k=1)
    assert ranking.judge(verdict(None, 5))
    assert ranking.enter(Path("a"), verdict(None, 5)) == []
    assert ranking.judge(verdict(None, 1))
    assert ranking.enter(Path("b"), verdict(None, 1)) == [Path("a")]
    assert (ranking.best_path, ranking.best_score, ranking.kept) == ("b", None, {"b": 1.0})


def test_a_file_that_was_replaced_has_its_new_score() -> None:
    ranking = Ranking(monitor="m", mode="max", save_top_k=2)
    ranking.enter("a", verdict(9.0))
    ranking.enter("b", verdict(5.0))
    assert ranking.enter("a", verdict(1.0)) == []
    assert ranking.kept == {"b": 5.0, "a": 1.0}


def test_a_metric_that_is_missing_is_named_with_those_there_are() -> None:
    ranking = Ranking(monitor="val/acc", mode="max", save_top_k=1)
    with pytest.raises(ValueError, match=r"`monitor='val/acc'` is not among the metrics of a validation: m\. HINT: "):
        ranking.judge(verdict(1.0))
    with pytest.raises(ValueError, match=r"it logged none\. HINT: "):
        ranking.enter("a", verdict(None))


def test_a_metric_must_be_one_number() -> None:
    ranking = Ranking(monitor="m", mode="max", save_top_k=1)
    with pytest.raises(ValueError, match=r"`monitor='m'` must be one number, but has shape \(2,\)\. HINT: "):
        ranking.judge(verdict([1.0, 2.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "most"}, r"Unknown mode 'most'\..* HINT: `mode`"),
        ({"save_top_k": -2}, r"`save_top_k` must be a whole number .* got -2\. HINT: -1 keeps all"),
        ({"save_top_k": 1.0}, r"got 1\.0\. HINT"),
    ],
)
def test_arguments_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ranking(**{"monitor": "m", "mode": "max", "save_top_k": 1, **arguments})


def entered(folder: Path, names: dict[str, float], k: int = 3) -> Ranking:
    ranking = Ranking(monitor="m", mode="max", save_top_k=k)
    for name, score in names.items():
        (folder / name).touch()
        ranking.enter(folder / name, verdict(score))
    return ranking


def test_state_survives_a_checkpoint(tmp_path: Path) -> None:
    ranking = entered(tmp_path, {"a": 1.0, "b": 3.0, "c": 2.0})
    torch.save(ranking.state_dict(), tmp_path / "state")
    again = Ranking(monitor="m", mode="max", save_top_k=3)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert again.kept == ranking.kept
    assert again.enter("d", verdict(1.0)) == [Path("d")]  # a tie: the earlier one stays


def test_a_checkpoint_that_is_gone_loses_its_place_and_score(tmp_path: Path) -> None:
    state = entered(tmp_path, {"a": 1.0, "b": 3.0}).state_dict()
    (tmp_path / "b").unlink()
    again = Ranking(monitor="m", mode="max", save_top_k=2)
    again.load_state_dict(state)
    assert (again.best_path, again.best_score) == (str(tmp_path / "a"), 1.0)
    again.load_state_dict(state, must_exist=False)
    assert (again.best_path, again.best_score) == (str(tmp_path / "b"), 3.0)


def test_fewer_than_before_are_kept_after_the_next_entry(tmp_path: Path) -> None:
    state = entered(tmp_path, {"a": 1.0, "b": 3.0, "c": 2.0}).state_dict()
    again = Ranking(monitor="m", mode="max", save_top_k=1)
    again.load_state_dict(state)
    assert not again.judge(verdict(2.5))
    assert set(again.enter("d", verdict(4.0))) == {tmp_path / name for name in "abc"}


def test_the_state_of_another_metric_is_left_aside(tmp_path: Path) -> None:
    state = entered(tmp_path, {"a": 1.0}).state_dict()
    again = Ranking(monitor="other", mode="max", save_top_k=1)
    with pytest.warns(UserWarning, match=r"ranks snapshots by 'm' \(max\), this run by 'other' \(max\)"):
        again.load_state_dict(state)
    assert again.kept == {}
