"""The attributes of a set of nodes or of edges, and how a batch gets its own rows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.features import FeatureStore, feature_store
from lightning_gnnopt.loading.fields import rows_field
from lightning_gnnopt.loading.plan import Field


class Attribute:
    """An attribute of all nodes, or of all edges.

    Args:
        values: The values, or a store of them.
        dim: The dimension that counts nodes or edges.
    """

    def __init__(self, values: Tensor | FeatureStore, dim: int = 0) -> None:
        if isinstance(values, Tensor) and dim:
            values = values.movedim(dim, 0)
        self.store = feature_store(values)
        self._dim = dim

    def field(self, ids: NDArray[np.integer]) -> Field:
        """Take rows, shape ``(n,)``; the field's tensor counts them in its first dimension."""
        return rows_field(self.store, ids)

    def place(self, rows: Tensor) -> Tensor:
        """Move the dimension that counts to where it is in the graph."""
        return rows.movedim(0, self._dim) if self._dim else rows


def sort_attributes(
    storage: Any, stores: Mapping[str, FeatureStore] | None = None
) -> tuple[dict[str, Attribute], dict[str, Attribute], dict[str, Any]]:
    """Tell apart what a batch takes rows of, and what it takes over.

    Args:
        storage: A PyG `Data`, or the part of a `HeteroData` for one type of nodes or edges.
        stores: Where the rows of some attributes of nodes are, instead of in `storage`.

    Returns:
        The attributes of nodes, those of edges, and everything else but `edge_index` and `num_nodes`.
    """
    of_nodes: dict[str, Attribute] = {}
    of_edges: dict[str, Attribute] = {}
    others: dict[str, Any] = {}
    stores = stores or {}
    data = storage if hasattr(storage, "__cat_dim__") else storage._parent()
    for name, value in storage.to_dict().items():
        if name in ("edge_index", "num_nodes") or name in stores:
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            value = torch.from_numpy(value)  # as PyG does
        if isinstance(value, Tensor) and storage.is_node_attr(name):
            of_nodes[name] = Attribute(value, data.__cat_dim__(name, value, storage))
        elif isinstance(value, Tensor) and storage.is_edge_attr(name):
            of_edges[name] = Attribute(value, data.__cat_dim__(name, value, storage))
        else:
            others[name] = value
    of_nodes |= {name: Attribute(store) for name, store in stores.items()}
    return of_nodes, of_edges, others
