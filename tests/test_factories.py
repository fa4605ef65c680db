from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_gnnopt.factories import datamodule_from_name


def test_options_reach_the_dataset_and_the_rest_the_datamodule() -> None:
    datamodule = datamodule_from_name("dcsbm", options={"num_nodes": 300, "num_classes": 3}, batch_size=7, seed=5)
    assert (datamodule.data.num_nodes, datamodule.num_classes) == (300, 3)
    assert (datamodule.batch_size, datamodule.seed) == (7, 5)


def test_the_seed_of_a_split_is_an_option_of_the_dataset() -> None:
    first, again, other = (
        datamodule_from_name("digits-knn", options={"seed": split_seed}, seed=run_seed).data.train_mask
        for split_seed, run_seed in ((1, 1), (1, 2), (2, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_root_is_where_files_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`cora` was not found below"):
        datamodule_from_name("cora", root=str(tmp_path), options={"download": False})


def test_unknown_option() -> None:
    with pytest.raises(ValueError, match=r"Unknown option of dataset 'dcsbm' 'num_node'\. Did you mean 'num_nodes'\?"):
        datamodule_from_name("dcsbm", options={"num_node": 3})
