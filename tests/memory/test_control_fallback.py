"""MemoryControl with steps that cannot be probed, and what of it is kept in checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch_geometric.data import Data

from lightning_gnnopt.memory import MemoryControl
from tests.memory.runs import (
    PLENTY,
    Batches,
    Net,
    Watch,
    fit,
    inexact,
    make_datamodule,
    make_trainer,
    no_warnings,
    node_loader,
    same_state,
    watched,
)

# What cannot be probed


def said(caught: list[warnings.WarningMessage], stage: str = "'train'") -> list[str]:
    return [str(w.message) for w in caught if "`MemoryControl`" in str(w.message) and stage in str(w.message)]


class Picky(Net):
    """Raises on batches that a loader would never yield."""

    def training_step(self, batch: Data, batch_idx: int) -> Any:
        if batch.batch_size < 30:
            raise ValueError("too few seeds")
        return super().training_step(batch, batch_idx)


LOADERS: dict[str, Callable[[], Any]] = {"ours": make_datamodule, "pyg": node_loader}


@pytest.mark.parametrize("name", LOADERS)
def test_a_model_that_raises_on_tiny_batches_learns_from_those_that_run(name: str) -> None:
    def run(*control: MemoryControl) -> Any:
        module, kept = Picky(), Batches()
        fit(module, LOADERS[name](), *control, kept, max_epochs=5)
        return module.state_dict(), kept.losses, kept.global_steps

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        control = watched()
        controlled = run(control)
    assert same_state(run(), controlled)
    (text,) = said(caught)
    assert "raised ValueError" in text
    assert "too few seeds" in text
    assert control.controller is not None
    learned = control.controller.learned["train", 0]
    assert learned.footprint.is_ready  # after 20 steps
    errors = [abs(predicted - measured) / measured for predicted, measured in list(control.controller.pairs)[-3:]]
    assert max(errors) < 0.2


def test_a_model_that_runs_out_of_memory_in_its_probes_falls_back() -> None:
    class Full(Net):
        def training_step(self, batch: Data, batch_idx: int) -> Any:
            if not self.trainer.callbacks:
                raise RuntimeError("std::bad_alloc")
            return super().training_step(batch, batch_idx)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        control = watched()
        fit(Full(), make_datamodule(), control)
    assert len(said(caught)) == 1
    assert control.tally.out_of_memory == 0


def test_an_interrupt_in_a_probe_is_no_fallback() -> None:
    class Interrupted(Net):
        def training_step(self, batch: Data, batch_idx: int) -> Any:
            raise KeyboardInterrupt

    control = watched()
    trainer = make_trainer(control)
    with no_warnings(), pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer.fit(Interrupted(), make_datamodule())
    assert "training_step" not in vars(trainer.strategy)


def test_a_compiled_model_is_learned_from_samples_with_one_warning() -> None:
    def run(*control: MemoryControl) -> Any:
        module, kept = Net(), Batches()
        module.convs[0] = torch.compile(module.convs[0], backend="eager", dynamic=True)
        fit(module, make_datamodule(), *control, kept, max_epochs=3)
        return [p.detach() for p in module.parameters()], kept.losses

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        control = watched()
        controlled = run(control)
    (text,) = said(caught)
    assert "model is compiled" in text
    assert same_state(run(), controlled)
    assert control.controller is not None
    assert control.controller.learned["train", 0].footprint.is_ready
    assert len(control.controller.pairs) > 0


@pytest.mark.parametrize("predictor", ["linear", "max_affine"])
def test_predictors_from_samples_are_within_the_budget(predictor: str) -> None:
    plain = Watch()
    fit(Net(), make_datamodule(), plain, max_epochs=3)
    budget = int(0.75 * max(plain.peaks["train"]))
    control, watch = watched(budget, predictor=predictor, on_exceed="prune"), Watch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(), make_datamodule(), control, watch, max_epochs=3)
    assert said(caught) == []  # it was asked for
    assert control.tally.over > 0
    assert [peak for peak in watch.peaks["train"] if peak > budget] == []


# State


def fit_and_save(folder: Path, control: MemoryControl, module: Net) -> Path:
    keeper = ModelCheckpoint(folder, filename="end", every_n_epochs=1)
    fit(module, make_datamodule(), control, keeper, enable_checkpointing=True, default_root_dir=folder, max_epochs=3)
    return folder / "end.ckpt"


def test_what_was_learned_from_samples_is_kept_in_checkpoints(tmp_path: Path) -> None:
    first = watched(predictor="linear")
    path = fit_and_save(tmp_path, first, Net())
    second = watched(predictor="linear")
    trainer = make_trainer(second, max_epochs=4)
    with no_warnings(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Net(), make_datamodule(), ckpt_path=path, weights_only=True)
    assert [text for text in said(caught, "") if "discarded" in text] == []
    assert [str(w.message) for w in caught if "discarded" in str(w.message)] == []
    kept = [c.controller.learned["train", 0].footprint.predictors["step"].num_samples for c in (first, second)]
    assert kept[1] > kept[0] - 1  # those of the first run, and its own steps
    state = torch.load(path, weights_only=True)["callbacks"]
    assert any("MemoryControl" in name for name in state)


def test_the_state_of_another_model_is_discarded_with_a_warning(tmp_path: Path) -> None:
    first = watched(predictor="linear")
    fit_and_save(tmp_path, first, Net())
    second = watched(predictor="linear")
    second.load_state_dict(first.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(hidden=40), make_datamodule(), second)
    discarded = [str(w.message) for w in caught if "discarded" in str(w.message)]
    assert len(discarded) >= 1
    assert "`fingerprint`" in discarded[0]
    assert inexact(second) != []
    assert max(abs(p - m) / m for p, m in second.controller.pairs) < 0.5


def test_the_state_is_plain(tmp_path: Path) -> None:
    control = watched()
    path = fit_and_save(tmp_path, control, Net())
    torch.load(path, weights_only=True)  # raises on anything but plain types and tensors
    assert control.state_dict() == {"predictors": {}}  # a tape is solved anew


def test_another_budget_after_a_resume(tmp_path: Path) -> None:
    path = fit_and_save(tmp_path, watched(PLENTY), Net())
    plain = Watch()
    fit(Net(), make_datamodule(), plain)
    budget = int(0.7 * max(plain.peaks["train"]))
    control, watch = watched(budget, on_exceed="prune"), Watch()
    trainer = make_trainer(control, watch, max_epochs=5)
    with no_warnings():
        trainer.fit(Net(), make_datamodule(), ckpt_path=path, weights_only=True)
    assert len(watch.peaks["train"]) == 8
    assert max(watch.peaks["train"]) <= budget
    assert control.tally.pruned > 0
