from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, seed_everything
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from lightning_gnnopt.models import MODELS, GraphSAGE, NodeClassifier

from .batches import C, F, N, loader, make_batches, make_data, make_model, make_trainer
from .graphs import OPTIONS


@pytest.mark.parametrize("name", MODELS)
def test_every_net_overfits_sampled_batches(name: str) -> None:
    data = make_data()
    seed_everything(0)
    model = make_model(name, dropout=0.0, hidden_channels=32)
    trainer = make_trainer(max_epochs=60)
    trainer.fit(model, loader(make_batches(data, torch.arange(12))))

    metrics = trainer.callback_metrics
    assert metrics.keys() == {"train/loss", "train/loss_epoch", "train/acc"}
    assert metrics["train/loss_epoch"] < 0.2
    assert metrics["train/acc"] == 1


def test_a_full_graph_from_pygs_loader_is_scored_on_its_masks() -> None:
    data = make_data()
    seed_everything(0)
    model = make_model("gcn", dropout=0.0, hidden_channels=32)
    trainer = make_trainer(max_epochs=200)
    batches = DataLoader([data])  # a `Batch`, whose property `batch_size` is 1
    trainer.fit(model, batches, batches)
    assert trainer.callback_metrics["train/loss"] < 0.1

    model.eval()
    with torch.no_grad():
        logits = model.net(data.x, data.edge_index)
    for stage, run in [("val", trainer.validate), ("test", trainer.test)]:
        (metrics,) = run(model, batches, verbose=False)
        mask = data[f"{stage}_mask"]
        assert metrics.keys() == {f"{stage}/loss", f"{stage}/acc"}
        assert metrics[f"{stage}/loss"] == pytest.approx(cross_entropy(logits[mask], data.y[mask]).item())
        assert metrics[f"{stage}/acc"] == pytest.approx(accuracy_score(data.y[mask], logits[mask].argmax(-1)))
    assert_close(torch.cat(trainer.predict(model, batches)), logits)


@pytest.mark.parametrize("label_shape", [(-1,), (-1, 1)])
def test_sampled_evaluation_equals_the_full_graph(label_shape: tuple[int, ...]) -> None:
    data = make_data()
    data.y = data.y.view(label_shape)
    model = make_model("gcn").eval()
    logits = model.net(data.x, data.edge_index)[:7]
    batches = loader(make_batches(data, torch.arange(7)))  # of 5 and 2 seeds: the mean must be weighted
    trainer = make_trainer()

    (metrics,) = trainer.test(model, batches, verbose=False)
    predictions = trainer.predict(model, batches)

    y = data.y.flatten()[:7]
    assert metrics["test/loss"] == pytest.approx(cross_entropy(logits, y).item(), rel=1e-5)
    assert metrics["test/acc"] == pytest.approx(accuracy_score(y, logits.argmax(-1)))
    assert [tuple(p.shape) for p in predictions] == [(5, C), (2, C)]
    assert_close(torch.cat(predictions), logits.detach())


def test_multilabel_metrics_equal_sklearns() -> None:
    data = make_data(multilabel=True)
    model = make_model("sage", multilabel=True).eval()
    # A bias that puts all logits of the last label between 0 and 1: they are logits all the same.
    model.net.convs[-1].lin_l.bias.data += torch.tensor([0.0, -0.5, 0.5])
    logits = model.net(data.x, data.edge_index)
    trainer = make_trainer()
    (metrics,) = trainer.validate(model, loader(make_batches(data, torch.arange(N))), verbose=False)

    probabilities, y = torch.sigmoid(logits), data.y
    assert metrics["val/loss"] == pytest.approx(binary_cross_entropy_with_logits(logits, y.float()).item(), rel=1e-5)
    assert metrics["val/acc"] == pytest.approx(accuracy_score(y.flatten(), (probabilities > 0.5).flatten()))
    assert metrics["val/f1"] == pytest.approx(f1_score(y, probabilities > 0.5, average="micro"))

    seed_everything(0)
    model = make_model("sage", multilabel=True, dropout=0.0, hidden_channels=32)
    trainer = make_trainer(max_epochs=60)
    trainer.fit(model, loader(make_batches(data, torch.arange(12))))
    assert trainer.callback_metrics["train/f1"] == 1


def test_logits_between_zero_and_one_are_not_taken_for_probabilities() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return torch.full((x.size(0), C), 0.25)  # a probability of 0.56

    data = make_data(multilabel=True)
    data.y = torch.ones(N, C)
    model = NodeClassifier(Constant(), out_channels=C, multilabel=True)
    (metrics,) = make_trainer().test(model, loader(make_batches(data, torch.arange(N))), verbose=False)
    assert metrics["test/acc"] == 1
    assert metrics["test/f1"] == 1


def test_two_runs_with_one_seed_are_the_same_bits() -> None:
    def run() -> tuple[Tensor, dict[str, Tensor]]:
        data = make_data()
        seed_everything(7)
        model = make_model("gat")
        trainer = make_trainer(max_epochs=3)
        trainer.fit(model, loader(make_batches(data, torch.arange(12))))
        return trainer.callback_metrics["train/loss_epoch"], model.state_dict()

    (loss, state), (again, state_again) = run(), run()
    assert torch.equal(loss, again)
    assert all(torch.equal(state[key], state_again[key]) for key in state)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_round_trip_needs_nothing_but_the_file(name: str, tmp_path: Path) -> None:
    data = make_data()
    model = make_model(
        name, num_layers=3, norm="layer", scheduler={"name": "StepLR", "step_size": 1, "interval": "step"}
    )
    trainer = make_trainer()
    trainer.fit(model, loader(make_batches(data, torch.arange(12), hops=3)))
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)

    loaded = NodeClassifier.load_from_checkpoint(path, weights_only=True)

    assert loaded.hparams == model.hparams
    assert loaded.hparams["optimizer"] == {"name": "Adam", "lr": 0.01}
    assert {key: loaded.hparams[key] for key in OPTIONS[name]} == OPTIONS[name]
    batch = make_batches(data, torch.arange(4), hops=3)[0]
    assert torch.equal(loaded.eval()(batch), model.eval()(batch))


def test_what_cannot_be_saved_is_passed_again(tmp_path: Path) -> None:
    model = NodeClassifier(GraphSAGE(F, 6, C), optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer()
    trainer.fit(model, loader(make_batches(make_data(), torch.arange(12))))
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    assert not {"net", "optimizer"} & model.hparams.keys()

    loaded = NodeClassifier.load_from_checkpoint(path, weights_only=True, net=GraphSAGE(F, 6, C))
    assert_close(loaded.state_dict(), model.state_dict())


class Outputs:
    def __init__(self, table: Tensor) -> None:
        self.table = table

    def rows(self, n_id: Tensor) -> Tensor:
        return self.table[n_id]


class LayerwiseData(LightningDataModule):
    """Has outputs that no network computes, so that their use shows."""

    def __init__(self, data: Data, eval_mode: str) -> None:
        super().__init__()
        self.data, self.eval_mode = data, eval_mode
        self.calls: list[tuple[Any, str, bool]] = []

    def layerwise_outputs(self, net: nn.Module, stage: str) -> Outputs:
        self.calls.append((net, stage, net.training))
        return Outputs(nn.functional.one_hot(self.data.y, C).float() * 100)

    def train_dataloader(self) -> Any:
        return loader(make_batches(self.data, torch.arange(12)))

    def val_dataloader(self) -> Any:
        hops = 0 if self.eval_mode == "layerwise" else 2
        return loader(make_batches(self.data, torch.arange(12, N), hops=hops))

    test_dataloader = predict_dataloader = val_dataloader


def test_layerwise_evaluation_reads_the_datamodules_outputs() -> None:
    datamodule = LayerwiseData(make_data(), "layerwise")
    model, trainer = make_model(), make_trainer(max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, datamodule)
    assert trainer.callback_metrics["val/acc"] == 1
    assert trainer.callback_metrics["train/loss"] > 0.1
    assert datamodule.calls == [(model.net, "val", False)] * 2

    (metrics,) = trainer.test(model, datamodule, verbose=False)
    assert metrics == {"test/acc": 1, "test/loss": 0}
    predictions = torch.cat(trainer.predict(model, datamodule))
    assert torch.equal(predictions.argmax(-1), datamodule.data.y[12:])
    assert [stage for _, stage, _ in datamodule.calls] == ["val", "val", "test", "predict"]
    assert model._layerwise is None


def test_another_loader_than_the_datamodules_runs_the_net() -> None:
    """Lightning keeps the DataModule of the fit; a loader passed later must not be judged by its outputs."""
    data = make_data()
    model, trainer = make_model(), make_trainer()
    trainer.fit(model, LayerwiseData(data, "layerwise"))
    for other in (loader(make_batches(data, torch.arange(12, N))), loader([data])):
        (metrics,) = trainer.test(model, other, verbose=False)
        (alone,) = make_trainer().test(model, other, verbose=False)
        assert metrics == alone
        assert metrics["test/loss"] > 0.1


def test_any_other_evaluation_runs_the_net() -> None:
    datamodule = LayerwiseData(make_data(), "sampled")
    model = make_model()
    (metrics,) = make_trainer().test(model, datamodule, verbose=False)
    assert datamodule.calls == []
    assert metrics["test/loss"] > 0.1


def test_a_scheduler_steps_with_the_epochs() -> None:
    model = make_model(optimizer={"name": "sgd", "lr": 0.8}, scheduler={"name": "StepLR", "step_size": 1, "gamma": 0.5})
    trainer = make_trainer(max_epochs=3)
    trainer.fit(model, loader(make_batches(make_data(), torch.arange(12))))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)
