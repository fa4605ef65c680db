"""Graphs whose edges join unlike nodes, from the files of Platonov et al."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import read_npz
from lightning_gnnopt.datasets.download import from_address
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register
from lightning_gnnopt.datasets.splits import set_masks

_ADDRESS = "https://raw.githubusercontent.com/yandex-research/heterophilous-graphs/a431395582e929d88271309716bea4fe24ce6318/data"


def load_heterophilous(*, paths: tuple[Path, ...], split: int) -> Data:
    """Read a graph with one of its ten published splits (Platonov et al., ICLR 2023).

    Args:
        paths: The npz file.
        split: Number of the split, 0 to 9.
    """
    x, label, edges = read_npz(paths[0], "node_features", "node_labels", "edges")
    masks = [mask[split] for mask in read_npz(paths[0], "train_masks", "val_masks", "test_masks")]
    data = Data(
        x=torch.from_numpy(x.astype(np.float32)),
        y=torch.from_numpy(label.astype(np.int64)),
        edge_index=undirected_edges(edges[:, 0], edges[:, 1], len(x)),
    )
    set_masks(data, *(np.flatnonzero(mask) for mask in masks))
    return data


_WIKIPEDIA = "Wikipedia pages that link to each other; nouns as features, traffic as class."
for _name, _summary, _counts in (
    ("squirrel", _WIKIPEDIA, (5_201, 396_706, 2_089, 5)),
    ("chameleon", _WIKIPEDIA, (2_277, 62_742, 2_325, 5)),
    ("squirrel-filtered", f"{_WIKIPEDIA} Without repeated nodes.", (2_223, 93_996, 2_089, 5)),
    ("chameleon-filtered", f"{_WIKIPEDIA} Without repeated nodes.", (890, 17_708, 2_325, 5)),
    ("actor", "Actors named on one Wikipedia page; keywords as features, kind as class.", (7_600, 53_318, 932, 5)),
    ("minesweeper", "Cells of a grid; counts of mines nearby as features, mine or not.", (10_000, 78_804, 7, 2)),
):
    _file = f"{_name.replace('-', '_')}.npz"
    register(
        _name,
        summary=_summary,
        num_nodes=_counts[0],
        num_edges=_counts[1],
        num_features=_counts[2],
        num_classes=_counts[3],
        citation="MIT (yandex-research/heterophilous-graphs). Platonov et al., A Critical Look at the Evaluation of"
        " GNNs under Heterophily, ICLR 2023; Pei et al., Geom-GCN, ICLR 2020.",
        splits=tuple(range(10)),
        files=PublishedFiles(
            folders=(_name,),
            anywhere=((_file,),),
            download=from_address(_ADDRESS, (_file,), subfolder=_name),
            source="github.com/yandex-research/heterophilous-graphs",
        ),
    )(load_heterophilous)
