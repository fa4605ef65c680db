"""A small heterogeneous graph, and what compares batches of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data, HeteroData

from .graphs import same_bits

NUM_NODES = {"author": 30, "paper": 40, "venue": 8}
WRITES, CITES, WRITTEN, AT = (
    ("author", "writes", "paper"),
    ("paper", "cites", "paper"),
    ("paper", "written", "author"),
    ("paper", "at", "venue"),
)
NUM_EDGES = {WRITES: 120, CITES: 160, WRITTEN: 110, AT: 40}


def make_hetero(*, seed: int = 0) -> HeteroData:
    """Has every kind of attribute that PyG cuts or leaves; venues have none."""
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data.title, data.scale = "a graph", torch.tensor([1.0, 2.0])
    data["author"].x = torch.randn(30, 3, generator=generator)
    data["author"].node_index = torch.arange(90).view(3, 30)  # PyG joins what is named `index` in its last dimension
    data["author"].mean = torch.randn(4, generator=generator)
    data["paper"].x = torch.randn(40, 5, generator=generator)
    data["paper"].y = torch.arange(40) % 3
    data["paper"].year = np.arange(1980, 2020)
    data["venue"].num_nodes = 8
    for name, count in NUM_EDGES.items():
        source, target = (torch.randint(NUM_NODES[end], (count,), generator=generator) for end in name[::2])
        data[name].edge_index = torch.stack([source, target])
    data[WRITES].edge_attr = torch.randn(120, 2, generator=generator)
    data[CITES].edge_weight = torch.rand(160, generator=generator)
    data[CITES].source = "a list"
    return data


def flat(batch: Data | HeteroData) -> dict[tuple[Any, str], Any]:
    """All that a batch holds, by type and name."""
    return {(getattr(store, "_key", None), name): store[name] for store in batch.stores for name in store}


def differences(found: Data | HeteroData, expected: Data | HeteroData) -> list[tuple[Any, str]]:
    """What two batches do not have in common, bit for bit."""
    left, right = flat(found), flat(expected)
    return [
        key
        for key in left.keys() | right.keys()
        if key not in left or key not in right or not same_bits(left[key], right[key])
    ]


def no_differences(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    return len(found) == len(expected) and not any(differences(a, b) for a, b in zip(found, expected, strict=True))
