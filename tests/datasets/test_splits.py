from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Data

from lightning_gnnopt.datasets.splits import random_split, set_masks


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=50), st.integers(0, 2**32))
def test_a_random_split_parts_the_labelled_nodes_in_half_and_quarters(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    parts = random_split(y, seed)
    labelled = [node for node, label in enumerate(labels) if label >= 0]
    assert sorted(np.concatenate(parts).tolist()) == labelled
    assert [len(part) for part in parts[:2]] == [len(labelled) // 2, len(labelled) // 4]
    assert all((again == part).all() for again, part in zip(random_split(y, seed), parts, strict=True))


def test_all_nodes_of_a_multilabel_set_are_split() -> None:
    parts = random_split(torch.zeros(8, 3), 0)
    assert [len(part) for part in parts] == [4, 2, 2]
    assert sorted(np.concatenate(parts).tolist()) == list(range(8))


def test_seeds_differ() -> None:
    y = torch.zeros(100, dtype=torch.long)
    assert random_split(y, 0)[0].tolist() != random_split(y, 1)[0].tolist()


def test_masks_mark_the_nodes_of_each_part() -> None:
    data = Data(y=torch.zeros(4))
    set_masks(data, [3, 0], np.array([1]), [])
    assert data.train_mask.tolist() == [True, False, False, True]
    assert data.val_mask.tolist() == [False, True, False, False]
    assert data.test_mask.tolist() == [False] * 4
    assert data.test_mask.dtype == torch.bool
