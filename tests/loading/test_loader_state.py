"""From which states a loader goes on, and from which it cannot."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.loading import GraphDataModule, PrefetchLoader

from .graphs import make_data, make_loader, same_batches
from .modules import Recorder, make_trainer


def after(num_batches: int, **options: Any) -> dict[str, Any]:
    """The state of a loader of five batches that has delivered some of them."""
    loader = make_loader(num_workers=0, **options)
    iterator = iter(loader)
    for _ in islice(iterator, num_batches):
        pass
    iterator.close()
    return loader.state_dict()


def loader_with(changes: dict[str, Any]) -> PrefetchLoader:
    return make_loader(num_workers=0, **changes)


# What is changed, what the message says of it, and how many batches there are then.
CHANGES: list[tuple[dict[str, Any], list[str]]] = [
    ({"batch_size": 4}, ["`batch_size` 8 (now 4)", "`num_batches` 5 (now 9)"]),
    ({"batch_size": 7}, ["`batch_size` 8 (now 7)"]),  # five batches again
    ({"seed": 6}, ["`seed` 5 (now 6)"]),
    ({"nodes": range(40)}, ["`num_inputs` 35 (now 40)"]),  # five batches again
    ({"nodes": range(20)}, ["`num_inputs` 35 (now 20)", "`num_batches` 5 (now 3)"]),
    ({"order": {"world_size": 2}}, ["`world_size` 1 (now 2)", "`num_batches` 5 (now 3)"]),
    ({"order": {"shuffle": False, "pad": True}}, ["`shuffle` True (now False)"]),
    ({"order": {"pad": False}}, ["`pad` True (now False)"]),
    ({"order": {"drop_last": True}}, ["`num_batches` 5 (now 4)"]),
    ({"batch_size": 4, "seed": 9}, ["`batch_size` 8 (now 4)", "`seed` 5 (now 9)"]),
]


@pytest.mark.parametrize(("changes", "parts"), CHANGES)
@pytest.mark.parametrize("num_batches", [1, 3, 4])
def test_the_rest_of_another_epoch_is_refused(num_batches: int, changes: dict[str, Any], parts: list[str]) -> None:
    loader, state = loader_with(changes), after(num_batches)
    start = f"The checkpoint was saved after batch {num_batches} of epoch 0 of a loader with "
    with pytest.raises(ValueError, match=f"^{re.escape(start)}.* HINT: ") as caught:
        loader.load_state_dict(state)
    for part in parts:
        assert part in str(caught.value)
    named = set(re.findall(r"`(\w+)` \S+ \(now", str(caught.value)))
    assert named == {name for name, value in loader_with(changes).state_dict().items() if state[name] != value} - {
        "batch"
    }
    # It is left as it was.
    assert same_batches(list(loader), list(loader_with(changes)))


@pytest.mark.parametrize(("changes", "parts"), CHANGES)
@pytest.mark.parametrize("is_at_start", [False, True])
def test_between_two_epochs_anything_may_change(is_at_start: bool, changes: dict[str, Any], parts: list[str]) -> None:
    loader, reference = loader_with(changes), loader_with(changes)
    loader.load_state_dict(after(0 if is_at_start else 5))
    reference.set_epoch(0 if is_at_start else 1)
    assert same_batches(list(loader), list(reference))
    assert loader.sampler.current_epoch == reference.sampler.current_epoch == (1 if is_at_start else 2)


def test_a_state_as_lightning_saves_it_at_the_end_of_an_epoch_is_one(tmp_path: Path) -> None:
    """It never asks for a batch after the last, so the loader does not know that the epoch is over."""
    state = {**after(4), "batch": 5}
    loader, reference = loader_with({"batch_size": 4}), loader_with({"batch_size": 4})
    loader.load_state_dict(state)
    reference.set_epoch(1)
    assert same_batches(list(loader), list(reference))


@pytest.mark.parametrize(
    "changes", [{"num_workers": 2}, {"num_workers": 3, "prefetch_factor": 5}, {"max_bytes_in_flight": 1}]
)
def test_how_batches_are_prepared_may_change_at_any_time(changes: dict[str, Any]) -> None:
    loader = make_loader(**changes)
    loader.load_state_dict(after(3))
    assert same_batches(list(loader), list(make_loader(num_workers=0))[3:])


def test_a_state_that_says_less_is_believed() -> None:
    """As those from before a state said what its batches depend on."""
    loader = make_loader(num_workers=0)
    loader.load_state_dict({"epoch": 0, "batch": 3})
    assert same_batches(list(loader), list(make_loader(num_workers=0))[3:])


def test_a_state_holds_plain_numbers(tmp_path: Path) -> None:
    state = after(3)
    assert {type(value) for value in state.values()} <= {int, bool}
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


# ---- under a Trainer -------------------------------------------------------------------------------------------------


class Saves(L.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def make_datamodule(data: Data | None = None, **options: Any) -> GraphDataModule:
    options = {"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, **options}
    return GraphDataModule(make_data() if data is None else data, **options)


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"batch_size": 4}, "`batch_size` 8 (now 4)"), ({"seed": 6}, "`seed` 5 (now 6)"), ({}, None)],
)
def test_a_checkpoint_from_the_middle_of_an_epoch(changes: dict[str, Any], part: str | None, tmp_path: Path) -> None:
    path, whole, resumed = tmp_path / "middle.ckpt", Recorder(), Recorder()
    make_trainer(2, callbacks=[Saves(path, 7)]).fit(whole, make_datamodule())
    trainer = make_trainer(2)
    if part is None:
        trainer.fit(resumed, make_datamodule(**changes), ckpt_path=path, weights_only=True)
        assert resumed.losses == whole.losses[7:]
        return
    with pytest.raises(
        ValueError, match=r"^The checkpoint was saved after batch 2 of epoch 1 of a loader with "
    ) as caught:
        trainer.fit(resumed, make_datamodule(**changes), ckpt_path=path, weights_only=True)
    assert part in str(caught.value)
    assert resumed.losses == []


def test_a_checkpoint_from_the_end_of_an_epoch_resumes_with_another_batch_size(tmp_path: Path) -> None:
    make_trainer(1, enable_checkpointing=True, default_root_dir=tmp_path).fit(Recorder(), make_datamodule())
    (path,) = tmp_path.rglob("*.ckpt")
    resumed = Recorder()
    make_trainer(2).fit(resumed, make_datamodule(batch_size=4), ckpt_path=path, weights_only=True)
    reference = make_datamodule(batch_size=4).train_dataloader()
    reference.set_epoch(1)
    assert [entry[:2] for entry in resumed.batches] == [(1, index) for index in range(9)]
    assert same_batches([batch for *_, batch in resumed.batches], list(reference))
