"""What each part measures, on a tiny graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from lightning_gnnopt.sampling import SampleKey
from lightning_gnnopt.studies.memory_control.accuracy import ShareCut, measure_accuracy
from lightning_gnnopt.studies.memory_control.limit import measure_limit, unlimited_peaks
from lightning_gnnopt.studies.memory_control.overhead import measure_overhead
from lightning_gnnopt.studies.memory_control.predictors import measure_predictors
from lightning_gnnopt.studies.memory_control.pruning import measure_pruning
from lightning_gnnopt.studies.memory_control.setup import Setup, principal_components


@pytest.fixture(scope="module")
def setup() -> Setup:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        config = compose("memory_study", ["memory=quick", "data=dcsbm", "model=gat"])
    study = OmegaConf.to_container(config.memory, resolve=True)
    assert isinstance(study, dict)
    return Setup(config, study, {"num_nodes": 400, "num_features": 12, "avg_degree": 12})  # type: ignore[arg-type]


def test_predictors_are_compared_on_batches_they_have_not_seen(setup: Setup) -> None:
    kinds = {"analytic": None, "linear": {"totals_only": True}, "forest": {"num_trees": 20}}
    options = {"sampler": "cluster", "train": 10, "test": 8, "kinds": kinds, "predictions": 2}
    found = measure_predictors(setup, options)
    measured = np.array(found["measured"])
    assert (found["fitted_to"], len(measured)) == (10, 8)
    analytic = np.array(found["kinds"]["analytic"]["predicted"])
    assert np.abs(analytic - measured).max() < 100  # what the first step of an epoch adds when it logs
    assert found["kinds"]["analytic"]["exact"] == (analytic == measured).mean() >= 0.5
    for kind in ("linear", "forest"):
        predicted = np.array(found["kinds"][kind]["predicted"])
        assert found["kinds"][kind]["max"] == pytest.approx(np.abs(predicted / measured - 1).max())
        assert found["kinds"][kind]["max"] > 0
    with pytest.raises(ValueError, match=r"Unknown predictor 'lines'"):
        measure_predictors(setup, {**options, "kinds": {"lines": {}}})
    with pytest.raises(ValueError, match=r"Unknown sampler of the study 'neighbour'"):
        measure_predictors(setup, {**options, "sampler": "neighbour"})


@pytest.mark.parametrize("policy", ["prune", "split"])
def test_no_step_is_over_the_limit(setup: Setup, policy: str) -> None:
    options = {"sampler": "neighbor", "quantile": 0.5, "steps": 10, "on_exceed": [policy]}
    found = measure_limit(setup, options)
    assert found["limit_bytes"] == int(np.quantile(found["before"], 0.5))
    assert found["over_before"] == np.mean(np.array(found["before"]) > found["limit_bytes"]) > 0
    assert max(found["after"]) <= found["limit_bytes"]
    assert found["largest"] == max(found["after"]) / found["limit_bytes"]
    assert found["touched"] == found["pruned" if policy == "prune" else "split"] > 0
    assert (found["edges_pruned"] > 0) == (policy == "prune")
    assert found["resampled"] == 0


def test_peaks_without_a_limit_are_measured_once(setup: Setup) -> None:
    first = unlimited_peaks(setup, steps=3, sampler="neighbor")
    assert unlimited_peaks(setup, steps=3, sampler="neighbor") is first
    assert unlimited_peaks(setup, steps=2, sampler="neighbor") == pytest.approx(first[:2], abs=100)


def test_overhead_counts_what_control_did(setup: Setup) -> None:
    options = {"batch_size": 40, "num_neighbors": [5, 5], "quantile": 0.5, "steps": 4, "epochs": 2, "rounds": 1}
    found = measure_overhead(setup, {**options, "predictors": ["analytic"]})
    assert len(found["wall"]) == 1
    assert found["sides"]["untouched"]["touched"] == 0
    assert found["sides"]["limit, analytic"]["touched"] > 0
    for side in found["sides"].values():
        assert 0 < side["steady"] < 1
        assert 0 < side["own"] < 1
        assert side["probe_s"] > 0


@pytest.mark.parametrize("score", ["degree", "pagerank", "random"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_edges_goes(setup: Setup, score: str, share: float) -> None:
    datamodule = setup.datamodule(num_neighbors=[4], batch_size=20)
    datamodule.setup("fit")
    batch = datamodule.sampler.sample(np.arange(20), SampleKey(seed=1))
    cut = ShareCut(share, score)(batch, lambda attempt: None)
    assert cut.num_edges == round((1 - share) * batch.num_edges)  # of one hop none is stranded
    assert cut.batch_size == 20
    with pytest.raises(ValueError, match=r"`share` must be from 0 to 1, but got 2\. HINT"):
        ShareCut(2, "degree")


def test_steps_in_parts_end_where_whole_ones_do(setup: Setup) -> None:
    options = {"seeds": 1, "steps": 6, "batch_size": 60, "eval_batch_size": 100}
    (whole,) = measure_accuracy(setup, {**options, "side": "whole"})["points"]
    (split,) = measure_accuracy(setup, {**options, "side": "split", "limit": 0.8})["points"]
    assert split["split"] == 1.0
    assert split["parts"] >= 2
    assert split["accuracies"] == pytest.approx(whole["accuracies"], abs=0.011)  # one node of a hundred
    cut = measure_accuracy(setup, {**options, "side": "random", "shares": [0.5, 1.0]})["points"]
    assert [(point["share"], len(point["accuracies"])) for point in cut] == [(0.5, 1), (1.0, 1)]


def test_pruning_cuts_as_many_edges_as_asked_for(setup: Setup) -> None:
    found = measure_pruning(setup, {"score": "degree", "edges": 1000, "rounds": 1})
    assert 2000 <= found["edges"] < 2200
    assert found["cut"] == 1000
    assert found["s"] == pytest.approx(found["order_s"] + found["cut_s"])
    most = measure_pruning(setup, {"score": "pagerank", "edges": 10**9, "rounds": 1})
    assert most["edges"] == setup.graph["edges"]
    assert most["cut"] == most["edges"] // 2


@pytest.mark.parametrize("sparse", [False, True])
def test_components_keep_what_there_is_to_tell(sparse: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 3) @ torch.randn(3, 20)
    reduced = principal_components(x.to_sparse_csr() if sparse else x, 3)
    assert reduced.shape == (50, 3)
    assert float(reduced.std()) == pytest.approx(1.0, abs=1e-5)
    # three directions span all of it: distances are kept up to the scale
    ratio = torch.pdist(reduced) / torch.pdist(x)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    assert principal_components(x, 20) is x
