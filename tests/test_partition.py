"""`gnnopt-partition`: a graph is cut, shown, found again, and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from lightning_gnnopt.factories import parts_from_name
from lightning_gnnopt.parallel import load_part, read_info
from lightning_gnnopt.partition import partition

GRAPH = ["data=dcsbm", "+data.options.num_nodes=300", "+data.options.num_classes=3"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        return compose("partition", list(overrides))


def test_a_graph_is_cut_shown_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = composed(*GRAPH, f"folder={tmp_path}", "num_parts=3", "model=gcn")
    report = partition(config)
    folder = tmp_path / "3-parts"
    shown = capsys.readouterr().out
    assert "Written to" in shown
    assert all(f" {name} " in shown for name in ("exact", "sar", "bns", "quantized"))
    assert report.info == read_info(folder)
    assert sum(load_part(folder, rank)[0].num_inner for rank in range(3)) == 300
    sent = report.bytes_by_policy
    assert sum(sent["sar"]) >= sum(sent["exact"]) > sum(sent["quantized"]) > sum(sent["bns"]) > 0
    again = partition(config)
    assert "remove it to have it cut anew" in capsys.readouterr().out
    assert (again.info, again.bytes_by_policy) == (report.info, sent)


def test_without_a_model_nothing_is_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = partition(composed(*GRAPH, f"folder={tmp_path}", "~model", "method=random"))
    assert report.bytes_by_policy == {}
    assert "training step" not in capsys.readouterr().out
    assert report.info.made_by["method"] == "random"


def test_a_folder_with_another_graph_is_refused(tmp_path: Path) -> None:
    partition(composed(*GRAPH, f"folder={tmp_path}", "~model"))
    other = composed(*GRAPH[:-1], "+data.options.num_classes=4", f"folder={tmp_path}", "~model")
    other.data.options.num_nodes = 200
    with pytest.raises(ValueError, match=r"holds a graph of 300 nodes and .* but dcsbm has 200 .*another `folder`"):
        partition(other)


def test_parts_are_enough_to_know_a_models_sizes(tmp_path: Path) -> None:
    """The graph is loaded where it has to be cut, and not again: here it could not be."""
    whole = parts_from_name("dcsbm", folder=str(tmp_path), options={"num_nodes": 300, "num_classes": 3}, batch_size=7)
    assert whole.data is not None
    sizes = (whole.num_features, whole.num_classes, whole.multilabel)
    assert sizes == (whole.data.x.size(1), 3, False)
    partition(composed(*GRAPH, f"folder={tmp_path}", "~model"))
    cut = parts_from_name("no such graph", folder=str(tmp_path))
    assert cut.data is None
    assert (cut.num_features, cut.num_classes, cut.multilabel) == sizes
