"""Training, validation and test masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def set_masks(data: Any, train: Any, val: Any, test: Any) -> None:
    """Give `data` the masks of a split.

    Args:
        data: PyG ``Data`` of ``N`` nodes; gets ``train_mask``, ``val_mask`` and ``test_mask``, boolean, ``(N,)``.
        train: Integer array of training nodes.
        val: Integer array of validation nodes.
        test: Integer array of test nodes.

    Examples:
        >>> from torch_geometric.data import Data
        >>> data = Data(y=torch.zeros(3))
        >>> set_masks(data, [2], [0], [1])
        >>> data.train_mask
        tensor([False, False,  True])
    """
    for name, nodes in (("train_mask", train), ("val_mask", val), ("test_mask", test)):
        mask = torch.zeros(len(data.y), dtype=torch.bool)
        mask[torch.as_tensor(np.asarray(nodes, dtype=np.int64))] = True
        data[name] = mask


def random_split(y: Tensor, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Split the labelled nodes at random: half for training, a quarter each for validation and test.

    Args:
        y: Labels, shape ``(N,)`` where a negative label means unlabelled, or ``(N, labels)``, all labelled.
        seed: Seed of the shuffle.

    Returns:
        Training, validation and test nodes.

    Examples:
        >>> [len(part) for part in random_split(torch.tensor([0, 1, -1, 0, 1]), seed=0)]
        [2, 1, 1]
    """
    labelled = np.arange(len(y)) if y.dim() == 2 else torch.nonzero(y >= 0).view(-1).numpy()
    nodes = np.random.default_rng(seed).permutation(labelled)
    train, val = len(nodes) // 2, len(nodes) // 4
    return nodes[:train], nodes[train : train + val], nodes[train + val :]
