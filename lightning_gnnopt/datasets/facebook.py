"""Friendships at four US universities, from Facebook100."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from lightning_gnnopt.datasets._arrays import checked
from lightning_gnnopt.datasets._checks import check_count
from lightning_gnnopt.datasets.download import from_pyg
from lightning_gnnopt.datasets.edges import undirected_edges
from lightning_gnnopt.datasets.features import sparse_tensor
from lightning_gnnopt.datasets.local import PublishedFiles
from lightning_gnnopt.datasets.registry import register

_YEAR = 5


def load_facebook(*, paths: tuple[Path, ...], min_class_size: int = 100) -> Data:
    """Read a friendship graph (Traud, Mucha and Porter, Physica A 2012) with the class year to predict.

    The features are the one-hot codes of the other six columns (status, gender, major, second major, dorm, high
    school), where "missing" is a code of its own. LINKX (Lim et al., NeurIPS 2021) predicts the gender instead.

    Args:
        paths: The MATLAB file.
        min_class_size: Years with fewer students are no class; those students, and those of unknown year, are
            unlabelled (-1). The classes are the remaining years in order.

    Raises:
        ValueError: If no year has that many students.
    """
    check_count(1, min_class_size=min_class_size)
    content = scipy.io.loadmat(str(paths[0]), variable_names=["A", "local_info"])
    edges = checked(paths[0].name, content["A"]).tocoo()
    info = content["local_info"].astype(np.int64)

    years, size = np.unique(info[:, _YEAR], return_counts=True)
    classes = years[(size >= min_class_size) & (years > 0)]
    if not len(classes):
        raise ValueError(
            f"`min_class_size` is {min_class_size}, but the largest year has {size[years > 0].max()} students."
            " HINT: lower it; the default is 100."
        )
    y = np.where(np.isin(info[:, _YEAR], classes), np.searchsorted(classes, info[:, _YEAR]), -1)

    blocks = []
    for column in range(info.shape[1]):
        if column != _YEAR:
            code = np.unique(info[:, column], return_inverse=True)[1]
            blocks.append(sp.csr_matrix((np.ones(len(code)), (np.arange(len(code)), code))))
    return Data(
        x=sparse_tensor(sp.hstack(blocks)),
        y=torch.from_numpy(y),
        edge_index=undirected_edges(edges.row, edges.col, len(info)),
    )


for _name, _file, _counts in (
    ("cornell5", "Cornell5.mat", (18_660, 1_581_554, 4_693, 8)),
    ("johns-hopkins55", "Johns Hopkins55.mat", (5_180, 373_172, 2_385, 6)),
    ("amherst41", "Amherst41.mat", (2_235, 181_908, 1_180, 6)),
    ("reed98", "Reed98.mat", (962, 37_624, 730, 5)),
):
    _folder = _name.replace("-", "")
    register(
        f"facebook-{_name}",
        summary=f"Students of {_file.removesuffix('.mat')} who are friends on Facebook; one-hot codes of status,"
        " gender, majors, dorm and high school as features, class year as class.",
        num_nodes=_counts[0],
        num_edges=_counts[1],
        num_features=_counts[2],
        num_classes=_counts[3],
        citation="For research, with citation. Traud, Mucha, Porter, Social Structure of Facebook Networks, 2012.",
        files=PublishedFiles(
            folders=(_folder,),
            anywhere=((_file,),),
            in_named_folder=(("data.mat",),),  # what PyG renames it to
            download=from_pyg("LINKXDataset", name=_folder),
            source="github.com/CUAI/Non-Homophily-Benchmarks",
        ),
    )(load_facebook)
