"""`PrefetchLoader` in Lightning's loops."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.sampling import Subgraph

from .graphs import make_data, make_loader, prefetch_threads, same_batch, same_batches
from .modules import Recorder, make_trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


def make_datamodule(**kwargs: Any) -> GraphDataModule:
    """Five training batches, two of validation; those of training are `make_loader`'s."""
    defaults: dict[str, Any] = {"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, "edge_id": True}
    return GraphDataModule(make_data(), **{**defaults, **kwargs})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_epoch_trains_on_its_own_batches(num_workers: int) -> None:
    module = Recorder()
    make_trainer(3).fit(module, make_datamodule(num_workers=num_workers))
    assert [(epoch, number) for epoch, number, _ in module.batches] == [(e, i) for e in range(3) for i in range(5)]
    reference = make_loader(num_workers=0)
    for epoch in range(3):
        assert same_batches([batch for e, _, batch in module.batches if e == epoch], list(reference))


def test_a_loader_works_without_the_datamodule() -> None:
    module, reference = Recorder(), make_loader(num_workers=0)
    make_trainer(2).fit(module, make_loader())
    assert same_batches([batch for _, _, batch in module.batches], [*reference, *reference])


def test_validation_sees_the_same_batches_in_every_epoch() -> None:
    module = Recorder()
    make_trainer(3, num_sanity_val_steps=0).fit(module, make_datamodule())
    assert len(module.validated) == 6
    assert torch.cat([batch.n_id[: batch.batch_size] for batch in module.validated[:2]]).tolist() == list(range(35, 48))
    for epoch in (1, 2):
        assert same_batches(module.validated[:2], module.validated[2 * epoch : 2 * epoch + 2])


def test_two_fits_start_from_the_same_batches() -> None:
    datamodule, modules = make_datamodule(), [Recorder(), Recorder()]
    for module in modules:
        make_trainer(2).fit(module, datamodule)
    assert modules[0].losses == modules[1].losses
    assert len(modules[0].losses) == 10


def test_loaders_may_be_built_anew_in_each_epoch() -> None:
    modules = [Recorder(), Recorder()]
    make_trainer(3).fit(modules[0], make_datamodule())
    make_trainer(3, reload_dataloaders_every_n_epochs=1).fit(modules[1], make_datamodule())
    assert modules[0].losses == modules[1].losses


class Save(Callback):
    """Saves a checkpoint in one hook, when so many steps were taken."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path = step, path
        setattr(self, hook, self._save)

    def _save(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("hook", "step", "trainer_options"),
    [
        ("on_train_batch_end", 1, {}),
        ("on_train_batch_end", 3, {}),
        ("on_train_batch_end", 5, {}),  # the last of the first epoch
        ("on_train_batch_end", 9, {}),
        ("on_validation_end", 5, {}),
        ("on_train_epoch_end", 5, {}),
        ("on_validation_end", 7, {"val_check_interval": 2}),  # in the middle of the second epoch
        ("on_train_batch_end", 4, {"accumulate_grad_batches": 2}),
        ("on_train_batch_end", 2, {"limit_train_batches": 3}),
        ("on_train_batch_end", 3, {"limit_train_batches": 3}),
        ("on_validation_end", 6, {"limit_train_batches": 3}),
        ("on_train_epoch_end", 3, {"limit_train_batches": 3}),
    ],
)
def test_a_resumed_run_goes_on_to_the_bit(
    hook: str, step: int, trainer_options: dict[str, Any], num_workers: int, tmp_path: Path
) -> None:
    whole, resumed, path = Recorder(), Recorder(), tmp_path / "middle.ckpt"
    trainer = make_trainer(3, callbacks=[Save(hook, step, path)], **trainer_options)
    if "accumulate_grad_batches" in trainer_options:  # between two optimizer steps, gradients would be lost
        trainer.callbacks[0].step = -1
        hook_on_batch(trainer, number=3, path=path)
    trainer.fit(whole, make_datamodule(num_workers=num_workers))
    batches_per_epoch = trainer.num_training_batches
    make_trainer(3, **trainer_options).fit(
        resumed, make_datamodule(num_workers=num_workers), ckpt_path=path, weights_only=True
    )

    rest = len(resumed.losses)
    assert rest == 3 * batches_per_epoch - (4 if "accumulate_grad_batches" in trainer_options else step)
    assert resumed.losses == whole.losses[-rest:]
    assert [entry[:2] for entry in resumed.batches] == [entry[:2] for entry in whole.batches[-rest:]]
    assert all(same_batch(a[2], b[2]) for a, b in zip(resumed.batches, whole.batches[-rest:], strict=True))
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def hook_on_batch(trainer: L.Trainer, *, number: int, path: Path) -> None:
    """Save after batch `number` of the first epoch."""

    class SaveAt(Callback):
        @override
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 0 and args[-1] == number:
                trainer.save_checkpoint(path)

    trainer.callbacks.append(SaveAt())


def test_lightnings_own_checkpoints_resume_within_an_epoch(tmp_path: Path) -> None:
    whole, resumed = Recorder(), Recorder()
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
    make_trainer(3, callbacks=[saver], enable_checkpointing=True).fit(whole, make_datamodule())
    assert {path.name for path in tmp_path.iterdir()} == {"step=7.ckpt", "step=14.ckpt"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        make_trainer(3).fit(resumed, make_datamodule(), ckpt_path=tmp_path / "step=7.ckpt", weights_only=True)
    assert resumed.losses == whole.losses[7:]


def test_a_checkpoint_holds_the_loaders_place(tmp_path: Path) -> None:
    path = tmp_path / "middle.ckpt"
    make_trainer(2, callbacks=[Save("on_train_batch_end", 7, path)]).fit(Recorder(), make_datamodule())
    state = torch.load(path, weights_only=True)
    (loader,) = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader == {
        "epoch": 1,
        "batch": 2,
        "num_batches": 5,
        "num_inputs": 35,
        "batch_size": 8,
        "seed": 5,
        "world_size": 1,
        "shuffle": True,
        "pad": True,
    }


def test_overfitting_repeats_the_first_batches_bit_for_bit() -> None:
    module = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*turning off.*shuffling.*")
        make_trainer(3, overfit_batches=2).fit(module, make_datamodule())
    batches = [batch for _, _, batch in module.batches]
    assert len(batches) == 6
    assert [batch.input_id.tolist() for batch in batches[:2]] == [list(range(8)), list(range(8, 16))]
    assert same_batches(batches[:2], batches[2:4])
    assert same_batches(batches[:2], batches[4:])


def test_one_overfitted_batch_is_learnt_by_heart() -> None:
    module = Recorder()
    make_trainer(60, overfit_batches=1, limit_val_batches=0).fit(module, make_datamodule(num_neighbors=[-1, -1]))
    assert len(module.losses) == 60
    assert module.losses[-1] < 0.01 < module.losses[0]


@pytest.mark.parametrize("num_workers", [1, 4])
def test_limited_epochs_start_with_the_first_batches(num_workers: int) -> None:
    module, reference = Recorder(), make_loader(num_workers=0)
    make_trainer(2, limit_train_batches=2).fit(module, make_datamodule(num_workers=num_workers))
    first, second = list(reference), list(reference)
    assert same_batches([batch for _, _, batch in module.batches], first[:2] + second[:2])


def test_an_epoch_may_be_ended_by_the_module() -> None:
    class EndsEarly(Recorder):
        @override
        def on_train_batch_start(self, batch: Data, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None

    module, reference = EndsEarly(), make_loader(num_workers=0)
    make_trainer(2).fit(module, make_datamodule(batch_size=8, num_workers=3))
    first, second = list(reference), list(reference)
    assert same_batches([batch for _, _, batch in module.batches], first[:3] + second[:3])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("num_workers", [1, 4])
def test_no_thread_is_left_after_a_failed_step(error: type[BaseException], num_workers: int) -> None:
    class Fails(Recorder):
        @override
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            if batch_idx == 1:
                assert len(prefetch_threads()) == num_workers
                raise error("in the second step")
            return super().training_step(batch, batch_idx)

    # Lightning turns an interrupt into an exit
    expected = SystemExit if error is KeyboardInterrupt else error
    with pytest.raises(expected) as caught:
        make_trainer(1, limit_val_batches=0).fit(Fails(), make_datamodule(num_workers=num_workers, batch_size=1))
    assert prefetch_threads() == []  # while the traceback is still at hand
    del caught


def test_an_error_of_a_worker_reaches_the_user_with_its_batch() -> None:
    def refuse(subgraph: Subgraph, resample: Any) -> Subgraph:
        if subgraph.batch_size == 3:
            raise RuntimeError("three seeds are too few")
        return subgraph

    module = Recorder()
    with pytest.raises(RuntimeError, match="three seeds are too few") as caught:
        make_trainer(1, limit_val_batches=0).fit(module, make_datamodule(transforms=[refuse]))
    assert caught.value.__notes__ == ["This happened while batch 4 of epoch 0 was prepared."]
    assert len(module.losses) == 4


def test_prediction_answers_in_the_order_of_the_nodes() -> None:
    found = make_trainer().predict(Recorder(), make_datamodule(eval_batch_size=11))
    assert torch.cat(found).tolist() == list(range(60))


def test_the_sanity_checks_threads_end_with_the_fit() -> None:
    class Counts(Recorder):
        @override
        def on_fit_end(self) -> None:
            self.left = len(prefetch_threads())

    module = Counts()
    make_trainer(1).fit(module, make_datamodule(num_workers=2, batch_size=8, eval_batch_size=1))
    assert module.left == 0


def test_fast_dev_run_takes_one_batch() -> None:
    module = Recorder()
    make_trainer(fast_dev_run=True).fit(module, make_datamodule())
    assert (len(module.losses), len(module.validated)) == (1, 1)
