"""Checkpoints from someone else: they hold numbers, and what they say of files is not believed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt import GraphDataModule, MemoryControl, NodeClassifier
from lightning_gnnopt.evaluation.messages import Verdict
from lightning_gnnopt.evaluation.ranking import Ranking
from lightning_gnnopt.evaluation.resuming import take_up
from lightning_gnnopt.evaluation.snapshots import Snapshot, SnapshotFolder
from lightning_gnnopt.evaluation.weights import read_weights
from lightning_gnnopt.memory.predictors import LinearPredictor

from .evil import Evil, evil_pickle


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def trainer(folder: Path, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=1,
    )


def graph() -> GraphDataModule:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(30, dtype=torch.bool)
    data = Data(
        x=torch.randn(30, 4, generator=generator),
        y=torch.randint(2, (30,), generator=generator),
        edge_index=torch.randint(30, (2, 90), generator=generator),
        train_mask=mask,
        val_mask=mask,
        test_mask=mask,
    )
    return GraphDataModule(data, batch_size=30, num_neighbors=[3, 3], num_workers=0)


def model() -> NodeClassifier:
    return NodeClassifier("sage", in_channels=4, out_channels=2, hidden_channels=4)


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    """An honest one, of a whole run."""
    run = trainer(tmp_path)
    run.fit(model(), datamodule=graph())
    run.save_checkpoint(tmp_path / "honest.ckpt")
    content: dict[str, Any] = torch.load(tmp_path / "honest.ckpt", weights_only=True)
    return content


PLACES = {
    "a callback's state": ("callbacks", "MemoryControl"),
    "a hyper-parameter": ("hyper_parameters", "dropout"),
    "a weight": ("state_dict", "net.extra"),
    "a key of its own": ("anything",),
}


@pytest.mark.parametrize("place", list(PLACES))
def test_what_a_checkpoint_asks_for_is_not_done(
    place: str, checkpoint: dict[str, Any], tmp_path: Path, trace: Path
) -> None:
    *outer, last = PLACES[place]
    target = checkpoint
    for name in outer:
        target = target[name]
    target[last] = Evil(trace)
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    for use in (
        lambda path: trainer(tmp_path, MemoryControl()).fit(model(), datamodule=graph(), ckpt_path=path),
        lambda path: trainer(tmp_path).test(model(), datamodule=graph(), ckpt_path=path, verbose=False),
        NodeClassifier.load_from_checkpoint,
    ):
        with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
            use(str(tmp_path / "evil.ckpt"))
    assert not trace.exists()


def test_a_checkpoint_that_is_a_plain_pickle_is_refused(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "evil.ckpt").write_bytes(evil_pickle(trace))
    with pytest.raises(pickle.UnpicklingError):
        NodeClassifier.load_from_checkpoint(tmp_path / "evil.ckpt")
    assert not trace.exists()


def test_the_honest_one_is_loaded(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    loaded = NodeClassifier.load_from_checkpoint(tmp_path / "honest.ckpt")
    assert all(torch.equal(value, checkpoint["state_dict"][name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["os.system", "subprocess.call", "builtins.exec"])
def test_a_checkpoint_does_not_say_who_builds_the_module(name: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    checkpoint["hyper_parameters"]["_instantiator"] = name
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="instantiator"):
        NodeClassifier.load_from_checkpoint(tmp_path / "evil.ckpt")


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_a_checkpoint_names_only_classes_of_torch(key: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    checkpoint["hyper_parameters"][key] = {"name": "os.system", "lr": 1}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"os.system"):
        NodeClassifier.load_from_checkpoint(tmp_path / "evil.ckpt")


# Snapshots of a run that is resumed


def state_of(folder: SnapshotFolder, *waiting: dict[str, Any]) -> dict[str, Any]:
    return {"folder": str(folder.folder), "waiting": [{**state, "log_step": 1} for state in waiting]}


def best_one() -> Ranking:
    return Ranking(monitor=None, mode="min", save_top_k=1)


def resume(loaded: dict[str, Any], folder: SnapshotFolder) -> list[Snapshot]:
    return [snapshot for snapshot, _ in take_up(loaded, folder, best_one(), step_now=10)]


@pytest.fixture
def folder(tmp_path: Path) -> SnapshotFolder:
    return SnapshotFolder(tmp_path / "checkpoints", run="abc123")


@pytest.mark.parametrize("is_told", [False, True], ids=["found in the folder", "named by the state"])
def test_weights_that_ask_for_more_are_not_judged(
    is_told: bool, folder: SnapshotFolder, tmp_path: Path, trace: Path
) -> None:
    honest, evil = (folder.new(step=step, epoch=0, with_checkpoint=False) for step in (2, 3))
    folder.write(honest.weights, {"state_dict": {"w": torch.ones(2)}, "buffers": {}})
    folder.write(evil.weights, {"state_dict": {"w": Evil(trace)}, "buffers": {}})
    told = [honest.to_state(), evil.to_state()] if is_told else []
    with pytest.warns(UserWarning, match=f"{evil.weights.name}' is not validated: it holds more than tensors.*HINT"):
        assert [snapshot.step for snapshot in resume(state_of(folder, *told), folder)] == [2]
    assert not trace.exists()
    read_weights(evil.weights)  # as in the run that wrote them itself, from a state of the user's own classes
    assert trace.exists()


@pytest.mark.parametrize("place", ["elsewhere", "beside", "below", "another run's", "without a mark"])
@pytest.mark.parametrize("what", ["weights", "checkpoint"])
def test_a_state_names_no_file_but_its_runs_snapshots(
    what: str, place: str, folder: SnapshotFolder, tmp_path: Path
) -> None:
    """What is judged is removed or renamed."""
    honest = folder.new(step=2, epoch=0, with_checkpoint=True)
    file = honest.weights if what == "weights" else honest.checkpoint
    assert file is not None
    victim = {
        "elsewhere": tmp_path / "thesis.tex",
        "beside": folder.folder / file.name,
        "below": folder.pending / ".." / ".." / "thesis.tex",
        "another run's": folder.pending / file.name.replace("abc123", "def456"),
        "without a mark": folder.pending / f"epoch=0-step=2-abc123-0a0a0a0a{file.suffix}",
    }[place]
    for path in (honest.weights, honest.checkpoint, victim):
        assert path is not None
        folder.write(path, {"state_dict": {}, "buffers": {}})
    state = honest.to_state() | {what: str(victim), "step": 3}
    with pytest.warns(UserWarning, match="is not taken up.*HINT"):
        found = resume(state_of(folder, state), folder)
    assert [snapshot.step for snapshot in found] == [2]
    assert victim not in {path for snapshot in found for path in (snapshot.weights, snapshot.checkpoint)}
    assert victim.exists()


def test_a_snapshot_of_an_earlier_folder_is_taken_up(folder: SnapshotFolder, tmp_path: Path) -> None:
    """Of a run that was resumed twice, each time with another folder."""
    first = SnapshotFolder(tmp_path / "first", run=folder.run)
    snapshot = first.new(step=2, epoch=0, with_checkpoint=False)
    first.write(snapshot.weights, {"state_dict": {}, "buffers": {}})
    assert resume(state_of(folder, snapshot.to_state()), folder) == [snapshot]


@pytest.mark.parametrize("run", ["../../x", "*", "", "a/b", "a-b", "[a]", 5])
def test_a_run_is_named_in_letters_and_digits(run: Any, folder: SnapshotFolder) -> None:
    with pytest.raises(ValueError, match=r"`run` must be letters and digits.*HINT"):
        folder.run = run
    assert folder.run == "abc123"


def test_a_verdict_removes_nothing_outside_the_folder(folder: SnapshotFolder, tmp_path: Path) -> None:
    """A ledger may name any file as a checkpoint that others push out."""
    victim, better = tmp_path / "thesis.tex", folder.folder / "better.ckpt"
    better.parent.mkdir()
    for path, step in ((victim, 1), (better, 2)):
        path.touch()
        verdict = Verdict(step=step, epoch=0, metrics={}, logged={}, shown={}, started_s=0.0, ended_s=1.0)
        folder.record(verdict, path=str(path))
    ranking = best_one()
    take_up(state_of(folder), folder, ranking, step_now=10)
    assert list(ranking.kept) == [str(better)]
    assert victim.exists()


# What a predictor of memory has learned


def test_a_table_of_more_rows_than_memory_is_cut() -> None:
    names = ["nodes", "edges"]
    honest = LinearPredictor(names, window=5)
    honest.fit([[1, 1], [2, 1], [1, 3], [4, 4]], [18, 21, 28, 42])
    state = honest.state_dict()
    state["features"] = torch.tensor([[1.0, 2.0]], dtype=torch.float64).expand(2**50, 2)
    state["peak_bytes"] = torch.tensor([3.0], dtype=torch.float64).expand(2**50)
    state["accepted"] = torch.tensor([True]).expand(2**50)
    predictor = LinearPredictor(names, window=5)
    predictor.load_state_dict(state)
    assert predictor.num_samples == 5


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("features", torch.ones(4, 3), "shape"),
        ("features", torch.full((4, 2), float("inf")), "finite"),
        ("features", torch.ones(2**20), "shape"),
        ("peak_bytes", torch.ones(3), "shape"),
        ("peak_bytes", torch.full((4,), float("nan")), "finite"),
        ("debt", float("nan"), "debt"),
    ],
)
def test_a_damaged_table_is_refused(name: str, value: Any, named: str) -> None:
    names = ["nodes", "edges"]
    state = LinearPredictor(names).fit([[1, 1], [2, 1], [1, 3], [4, 4]], [18, 21, 28, 42]).state_dict()
    with pytest.raises(ValueError, match=f"{named}.*HINT"):
        LinearPredictor(names).load_state_dict(state | {name: value})
