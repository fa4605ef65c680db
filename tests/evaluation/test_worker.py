"""What the validation process finds, with one process for most of the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.evaluation.child import ChildProcess
from lightning_gnnopt.evaluation.messages import Job, ValidationFailed, Verdict
from lightning_gnnopt.evaluation.packing import pack
from lightning_gnnopt.evaluation.weights import load_weights
from lightning_gnnopt.evaluation.worker import Validator

from .child_modules import (
    Big,
    Lazy,
    Obedient,
    Randomly,
    Surrounded,
    blueprint_of,
    loader,
    quiet_trainer,
    write_weights,
)  # fmt: skip

TIMEOUT_S = 60.0


def validate_here(module: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    trainer = quiet_trainer()
    trainer.validate(module, verbose=False, **kwargs)
    return dict(trainer.callback_metrics)


def judge(child: ChildProcess, module: nn.Module, folder: Path, step: int = 12, epoch: int = 3) -> Verdict:
    weights = write_weights(module, folder / f"{step}.pt")
    return child.run(Job(step=step, epoch=epoch, weights=weights), timeout_s=TIMEOUT_S)


def assert_same(metrics: Any, reference: Any, *names: str) -> None:
    for name in names:
        assert metrics[name].dtype == reference[name].dtype
        assert torch.equal(metrics[name], reference[name]), name


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orders") / "order"


@pytest.fixture(scope="module")
def child(orders: Path) -> Iterator[ChildProcess]:
    process = ChildProcess(pack(blueprint_of(Obedient(str(orders)), loader(num_workers=1))))
    process.start()
    yield process
    process.stop()


def trained(seed: int) -> Obedient:
    module = Obedient()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*module.parameters(), module.net[1].running_mean, module.shift]:
            value.copy_(torch.randn(value.shape, generator=generator))
    return module


@pytest.mark.parametrize("seed", [1, 2])
def test_metrics_are_bit_equal_to_a_blocking_validation(child: ChildProcess, seed: int, tmp_path: Path) -> None:
    module = trained(seed)
    verdict = judge(child, module, tmp_path, step=100 + seed, epoch=seed)
    module.setup = lambda stage: None  # it would destroy the weights; the child does not run it, either
    reference = validate_here(module, dataloaders=loader(num_workers=1))
    assert verdict.metrics.keys() == reference.keys()
    assert_same(verdict.metrics, reference, "mean", "x", "x_epoch")
    assert verdict.shown["x_epoch"] == reference["x"]
    assert "mean" not in verdict.shown
    assert torch.equal(verdict.logged["mean"], reference["mean"])
    assert (verdict.step, verdict.epoch) == (100 + seed, seed)
    assert verdict.metrics["own/epoch"] == seed
    assert verdict.metrics["own/step"] == 100 + seed
    assert verdict.metrics["set_up"] == 0
    assert verdict.records == [({"said": 1.5}, 7)]
    assert verdict.started_s < verdict.ended_s
    assert not verdict.metrics["x"].is_inference()


def test_each_validation_draws_the_same_numbers(child: ChildProcess, tmp_path: Path) -> None:
    first, second = (judge(child, trained(3), tmp_path, step=step).metrics["draw"] for step in (1, 2))
    assert torch.equal(first, second)


def test_an_exception_is_told_and_the_next_validation_starts_afresh(
    child: ChildProcess, orders: Path, tmp_path: Path
) -> None:
    expected = judge(child, trained(4), tmp_path).metrics
    orders.write_text("raise")
    with pytest.raises(ValidationFailed, match="this batch is bad") as failed:
        judge(child, trained(4), tmp_path, step=1234)
    orders.unlink()
    assert failed.value.kind == "raised"
    assert "step 1,234" in str(failed.value)
    assert "Traceback (most recent call last)" in str(failed.value)
    assert "in validation_step" in str(failed.value)
    assert_same(judge(child, trained(4), tmp_path).metrics, expected, "mean", "x")


def test_prints_go_where_errors_go(
    child: ChildProcess, orders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders.write_text("print")
    judge(child, trained(5), tmp_path)
    orders.unlink()
    judge(child, trained(5), tmp_path)
    captured = capsys.readouterr()
    assert captured.err.count("said by the module\n") == 3
    assert captured.err.count("written past Python\n") == 3
    assert captured.out == ""


def test_training_goes_first_where_both_want_a_core(child: ChildProcess, tmp_path: Path) -> None:
    judge(child, trained(5), tmp_path)
    assert child.pid is not None
    assert psutil.Process(child.pid).nice() == min(psutil.Process().nice() + 10, 19)


def test_weights_that_do_not_fit_are_refused(child: ChildProcess, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match="Missing key"):
        judge(child, nn.Linear(2, 2), tmp_path)


def graph_module(datamodule: GraphDataModule) -> NodeClassifier:
    return NodeClassifier(
        "sage", in_channels=datamodule.num_features, out_channels=datamodule.num_classes, hidden_channels=16
    )


@pytest.mark.parametrize("eval_mode", ["sampled", "layerwise"])
def test_a_graph_is_validated_as_here(eval_mode: Any, tmp_path: Path) -> None:
    datamodule = GraphDataModule(
        load_dataset("digits-knn"), num_neighbors=[5, 5], batch_size=128, eval_mode=eval_mode, num_workers=1
    )
    datamodule.setup("fit")
    torch.manual_seed(0)
    module = graph_module(datamodule)
    child = ChildProcess(pack(blueprint_of(module, datamodule=datamodule)))
    child.start()
    try:
        verdict = judge(child, module, tmp_path)
    finally:
        child.stop()
    reference = validate_here(module, datamodule=datamodule)
    assert len(reference) >= 2
    assert_same(verdict.metrics, reference, *reference)


def private_bytes(pid: int) -> int:
    # Pages of a mapping that nobody else has mapped count as private, too; anonymous ones are copies.
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is looked up in /proc")
def test_features_are_read_where_they_are_shared(child: ChildProcess, tmp_path: Path) -> None:
    datamodule = Big()
    packed = pack(blueprint_of(Obedient(), datamodule=datamodule))
    assert packed.shared_bytes > 200e6
    other = ChildProcess(packed)
    other.start()
    try:
        verdict = judge(other, trained(1), tmp_path)
        other_bytes = private_bytes(other.pid)
    finally:
        other.stop()
    judge(child, trained(1), tmp_path)
    assert_same(verdict.metrics, validate_here(_unset(trained(1)), datamodule=datamodule), "mean")
    assert other_bytes - private_bytes(child.pid) < 100e6


def _unset(module: Obedient) -> Obedient:
    module.setup = lambda stage: None
    return module


def test_the_environment_of_a_distributed_run_does_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        packed = pack(blueprint_of(Surrounded(), loader()))
    finally:
        torch.set_default_dtype(torch.float32)
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    child = ChildProcess(packed, env={"GIVEN": "yes"})
    child.start()
    try:
        metrics = judge(child, Surrounded(), tmp_path).metrics
    finally:
        child.stop()
    found = {name: metrics[name].item() for name in metrics}
    assert found == {**dict.fromkeys(given, 0.0), "PYTHONPATH": 0, "GIVEN": 1, "world": 1, "threads": 1, "is_double": 1}


def test_a_process_that_ends_says_how(child: ChildProcess, orders: Path, tmp_path: Path) -> None:
    orders.write_text("exit")
    with pytest.raises(ValidationFailed, match="ended with exit code 3, during a validation") as failed:
        judge(child, trained(5), tmp_path)
    orders.unlink()
    assert failed.value.kind == "died"


# The rest needs no process: what it runs, in this one.


def run_here(module: Any, weights: Path, **kwargs: Any) -> Verdict:
    packed = pack(blueprint_of(module, **kwargs))
    return Validator(packed.payload).validate(Job(step=1, epoch=0, weights=weights))


def test_a_split_that_was_drawn_is_not_drawn_again(tmp_path: Path) -> None:
    datamodule = Randomly()
    datamodule.setup("fit")
    module = trained(1)
    packed = pack(blueprint_of(Obedient(), datamodule=datamodule))
    validator = Validator(packed.payload)
    weights = write_weights(module, tmp_path / "w.pt")
    verdicts = [validator.validate(Job(step=step, epoch=0, weights=weights)) for step in (1, 2)]
    reference = validate_here(_unset(module), dataloaders=Randomly.val_dataloader(datamodule))
    for verdict in verdicts:
        assert_same(verdict.metrics, reference, "mean", "x")


def test_a_factorys_datamodule_is_set_up_once(tmp_path: Path) -> None:
    packed = pack(blueprint_of(Obedient(), datamodule_factory=Randomly))
    validator = Validator(packed.payload)
    weights = write_weights(trained(1), tmp_path / "w.pt")
    first, second = (validator.validate(Job(step=step, epoch=0, weights=weights)) for step in (1, 2))
    assert_same(first.metrics, second.metrics, "mean", "x")


def test_lazy_modules_get_their_weights(tmp_path: Path) -> None:
    module = Lazy()
    module.eval()
    uninitialised = pack(blueprint_of(module, loader()))
    module.net(torch.randn(4, 32))
    with torch.no_grad():
        module.net[1].running_mean.fill_(0.5)
    weights = write_weights(module, tmp_path / "w.pt")
    verdict = Validator(uninitialised.payload).validate(Job(step=1, epoch=0, weights=weights))
    assert_same(verdict.metrics, validate_here(module, dataloaders=loader()), "x")


def test_names_of_compiled_modules_are_those_of_what_was_compiled() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    compiled = nn.Sequential(torch.compile(nn.Linear(3, 2), backend="eager"), nn.Linear(2, 1))
    names = set(compiled.state_dict())
    assert "0._orig_mod.weight" in names
    load_weights(net, {"state_dict": compiled.state_dict(), "buffers": {}})
    assert torch.equal(net[0].weight, compiled[0]._orig_mod.weight)


def test_buffers_outside_of_the_state_dict_are_loaded() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.zeros(2), persistent=False)
            self.register_buffer("b", None, persistent=False)

    outer = nn.Sequential(Buffered())
    held = outer[0].a
    load_weights(outer, {"state_dict": {}, "buffers": {"0.a": torch.ones(2), "0.b": torch.ones(3)}})
    assert held is outer[0].a
    assert held.tolist() == [1, 1]
    assert outer[0].b.tolist() == [1, 1, 1]
    with pytest.raises(AttributeError, match="`0` has no buffer `c`"):
        load_weights(outer, {"state_dict": {}, "buffers": {"0.c": torch.ones(2)}})


SCRIPT = """
import sys, torch, lightning as L
from pathlib import Path
from torch.utils.data import DataLoader
from lightning_gnnopt.evaluation.blueprint import Blueprint
from lightning_gnnopt.evaluation.child import ChildProcess
from lightning_gnnopt.evaluation.messages import Job
from lightning_gnnopt.evaluation.packing import pack

SCALE = 2.0

class Data(torch.utils.data.Dataset):
    def __len__(self): return 3
    def __getitem__(self, k): return torch.tensor(float(k))

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))
    def validation_step(self, batch, batch_idx):
        self.log("x", SCALE * self.w * batch.sum(), reduce_fx="sum", batch_size=1)

module = Net()
trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer._data_connector.attach_data(module, val_dataloaders=DataLoader(Data(), num_workers=1))
child = ChildProcess(pack(Blueprint.of(trainer, module, device=torch.device("cpu"))))
child.start()
path = Path(sys.argv[1])
torch.save({"state_dict": {"w": torch.tensor(5.0)}, "buffers": {}}, path)
print("x", child.run(Job(step=1, epoch=0, weights=path), timeout_s=60).metrics["x"].item())
"""


def test_a_script_needs_no_guard_and_no_stop(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "w.pt")], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "x 30.0"
