"""What a batch says about unequal chances: `edge_norm` reaches the net, `node_norm` the loss."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch_geometric.nn as pyg
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close
from torch_geometric.data import Data

from lightning_gnnopt.models import MODELS, NodeClassifier

from .batches import C, F, loader, make_batches, make_data, make_model, make_trainer


def make_batch(*, multilabel: bool = False) -> Data:
    (batch,) = make_batches(make_data(multilabel=multilabel), torch.arange(5))
    generator = torch.Generator().manual_seed(4)
    batch.edge_norm = 1 + torch.rand(batch.num_edges, generator=generator)
    batch.node_norm = 1 + 9 * torch.rand(batch.num_nodes, generator=generator)
    return batch


@pytest.mark.parametrize("name", MODELS)
def test_edge_norm_reaches_the_net(name: str) -> None:
    batch, model = make_batch(), make_model(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model(batch)
    counts = {
        "num_sampled_nodes_per_hop": batch.num_sampled_nodes,
        "num_sampled_edges_per_hop": batch.num_sampled_edges,
    }
    expected = model.net(batch.x, batch.edge_index, **counts, in_degree=batch.in_degree, edge_norm=batch.edge_norm)
    assert_close(out, expected)
    del batch.edge_norm
    assert not torch.allclose(model(batch), out)


def test_a_net_that_ignores_edge_norm_is_warned_of_once() -> None:
    batch, model = make_batch(), NodeClassifier(pyg.GraphSAGE(F, 6, 2, out_channels=C)).eval()
    message = (
        r"^The batch's `edge_norm` is not used by GraphSAGE, whose `forward` has no such argument: in-edges were drawn"
        r" with unequal chances, and what it aggregates from them is biased\. HINT: multiply messages by it"
    )
    with pytest.warns(UserWarning, match=message):
        out = model(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(batch), out)
        del batch.edge_norm
        assert torch.equal(model(batch), out)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_training_loss_is_the_weighted_mean_over_the_seeds(multilabel: bool) -> None:
    batch = make_batch(multilabel=multilabel)
    model = make_model("sage", multilabel=multilabel, dropout=0.0)
    logits, weight = model(batch).detach(), batch.node_norm[:5].tolist()
    if multilabel:
        losses = [binary_cross_entropy_with_logits(logits[v], batch.y[v].float()).item() for v in range(5)]
    else:
        losses = [cross_entropy(logits[v], batch.y[v]).item() for v in range(5)]
    expected = sum(w * loss for w, loss in zip(weight, losses, strict=True)) / sum(weight)

    trainer = make_trainer()
    trainer.fit(model, loader([batch]))

    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(sum(losses) / 5, rel=1e-3)


def test_equal_weights_change_nothing() -> None:
    weighted, plain = make_batch(), make_batch()
    weighted.node_norm.fill_(7.5)
    del plain.node_norm
    model = make_model("sage", dropout=0.0)
    model.log = model.log_dict = lambda *args, **kwargs: None
    assert_close(model.training_step(weighted, 0), model.training_step(plain, 0))


def test_evaluation_weighs_nothing() -> None:
    batch, model = make_batch(), make_model("sage").eval()
    (metrics,) = make_trainer().test(model, loader([batch]), verbose=False)
    assert metrics["test/loss"] == pytest.approx(cross_entropy(model(batch), batch.y[:5]).item(), rel=1e-5)


def test_a_full_graphs_weights_are_those_of_its_mask() -> None:
    data, model = make_data(), make_model("sage", dropout=0.0)
    data.node_norm = torch.arange(1.0, data.num_nodes + 1)
    model.log = model.log_dict = lambda *args, **kwargs: None
    logits = model.net(data.x, data.edge_index)[data.train_mask]
    losses = cross_entropy(logits, data.y[data.train_mask], reduction="none")
    weight = torch.arange(1.0, 13)  # the first twelve nodes
    assert_close(model.training_step(data, 0), (weight * losses).sum() / 78)
