"""From a batch to the numbers its memory depends on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.memory.held import stored_bytes

_COUNTERS = ("loops", "padded")


class FeatureReader:
    """Reads a row of features off sampled subgraphs and PyG batches.

    The names, and so the order of the row, are taken from an example; later batches must have the same hops and types.
    ``nodes_0`` counts the seeds, ``nodes_h`` the nodes that hop ``h`` added, ``edges_h`` its edges. A batch without
    hops, such as a cluster, has its seeds as ``nodes_0``, its other nodes as ``nodes_1`` and all edges as ``edges_1``.
    Nodes and edges of a heterogeneous batch are counted by type, ``nodes_1[paper]``; links have ``labels``, and
    ``negatives`` where these are kept apart.

    Two kinds of features cost a pass over the edges and are read only if asked for: ``loops_h``, the self loops among
    ``edges_h``, which some layers remove and add again, and ``padded``, the number of nodes times the largest
    in-degree, the rows of an aggregation that pads (LSTM, sort, ...). Homogeneous batches only.

    Args:
        example: A `Subgraph`, `LinkSubgraph`, `HeteroSubgraph`, or a PyG ``Data`` or ``HeteroData``.
        loops: Whether to count self loops.
        padded: Whether to count padded rows.

    Attributes:
        names: What the columns are, ``P`` of them.

    Raises:
        TypeError: If `example` is none of these.

    Examples:
        >>> from torch_geometric.data import Data
        >>> import torch
        >>> batch = Data(x=torch.rand(4, 2), edge_index=torch.tensor([[1, 2, 3], [0, 0, 1]]), batch_size=1)
        >>> batch.num_sampled_nodes, batch.num_sampled_edges = [1, 2, 1], [2, 1]
        >>> reader = FeatureReader(batch)
        >>> dict(zip(reader.names, reader(batch).tolist()))
        {'nodes_0': 1.0, 'nodes_1': 2.0, 'nodes_2': 1.0, 'edges_1': 2.0, 'edges_2': 1.0}
    """

    def __init__(self, example: Any, *, loops: bool = False, padded: bool = False) -> None:
        names, _ = _counts(example)
        wanted = [counter for counter, is_wanted in zip(_COUNTERS, (loops, padded), strict=True) if is_wanted]
        if wanted and _is_hetero(_nodes_of(example)):
            raise TypeError(f"{' and '.join(wanted)} can be counted in homogeneous batches only.")
        self._count_names = list(names)
        if loops:
            num_hops = sum(name.startswith("edges_") for name in names)
            names = names + [f"loops_{hop + 1}" for hop in range(num_hops)]
        if padded:
            names = [*names, "padded"]
        self.names: tuple[str, ...] = tuple(names)
        self._loops, self._padded = loops, padded

    def __call__(self, batch: Any) -> NDArray[np.float64]:
        """Read one batch's row, shape ``(P,)``.

        Raises:
            ValueError: If the batch has other hops or types than the example.
        """
        names, values = _counts(batch)
        if names != self._count_names:
            raise ValueError(
                f"The batch must have the same hops and types as the first one, {', '.join(self.names)}, but it has"
                f" {', '.join(names)}. HINT: give each loader a control of its own."
            )
        if self._loops or self._padded:
            row, col, sizes = _edges_of(_nodes_of(batch))
            if self._loops:
                values.extend(count_loops(row, col, sizes))
            if self._padded:
                num_nodes = sum(value for name, value in zip(names, values, strict=False) if name.startswith("nodes_"))
                values.append(num_nodes * int(np.bincount(col).max() if len(col) else 0))
        return np.array(values, np.float64)

    def columns(self, names: Iterable[str]) -> NDArray[np.int64]:
        """Places of some names in the row."""
        places = {name: place for place, name in enumerate(self.names)}
        return np.array([places[name] for name in names], np.int64)


def num_edges_of(batch: Any) -> int:
    """Count the edges of a subgraph or batch, over all types."""
    names, values = _counts(batch)
    return int(sum(value for name, value in zip(names, values, strict=True) if name.startswith("edges_")))


def is_batch(batch: Any) -> bool:
    """Whether it is a PyG batch."""
    return isinstance(batch, (Data, HeteroData))


def has_edges(batch: Any) -> bool:
    """Whether a batch brings any hop; one that is evaluated layer by layer does not."""
    return any(name.startswith("edges_") for name in _counts(batch)[0])


def batch_bytes(batch: Any) -> int:
    """Count the bytes of a PyG batch's tensors; one that stands under two names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for tensor in _tensors(batch):
        if tensor.layout == torch.strided:  # those of a packed batch share one storage
            sizes[tensor.data_ptr(), tensor.nbytes] = tensor.nbytes
        else:
            sizes[id(tensor), 0] = stored_bytes(tensor)
    return sum(sizes.values())


def count_loops(row: NDArray[np.integer], col: NDArray[np.integer], sizes: Sequence[int]) -> list[int]:
    """Count the self loops of each hop.

    Args:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
        sizes: Edges of each hop, summing to ``E``.

    Returns:
        One count per hop.
    """
    counts, start = [], 0
    for size in sizes:
        counts.append(int(np.count_nonzero(row[start : start + size] == col[start : start + size])))
        start += size
    return counts


def _counts(batch: Any) -> tuple[list[str], list[int]]:
    """What can be read without a look at the edges."""
    nodes = _nodes_of(batch)
    if _is_hetero(nodes):
        names, values = _hetero_counts(nodes)
    else:
        names, values = _homogeneous_counts(nodes)
    labels, negatives = _num_labels(batch)
    if labels is not None:
        names.append("labels")
        values.append(labels)
    if negatives is not None:
        names.append("negatives")
        values.append(negatives)
    return names, values


def _homogeneous_counts(nodes: Any) -> tuple[list[str], list[int]]:
    per_hop = _get(nodes, "num_sampled_nodes"), _get(nodes, "num_sampled_edges")
    if per_hop[0] is None or per_hop[1] is None:
        num_nodes, seeds = int(nodes.num_nodes), _get(nodes, "batch_size")
        seeds = num_nodes if seeds is None else int(seeds)
        return ["nodes_0", "nodes_1", "edges_1"], [seeds, num_nodes - seeds, int(nodes.num_edges)]
    num_nodes_of, num_edges_of_hop = _plain(per_hop[0]), _plain(per_hop[1])
    return [*_hop_names(len(num_nodes_of), len(num_edges_of_hop))], num_nodes_of + num_edges_of_hop


@cache
def _hop_names(num_nodes: int, num_edges: int) -> tuple[str, ...]:
    return (*(f"nodes_{hop}" for hop in range(num_nodes)), *(f"edges_{hop + 1}" for hop in range(num_edges)))


def _hetero_counts(nodes: Any) -> tuple[list[str], list[int]]:
    names: list[str] = []
    values: list[int] = []
    per_type = _get(nodes, "num_sampled_nodes"), _get(nodes, "num_sampled_edges")
    if per_type[0] is None:  # PyG keeps them in each type's own store
        per_type = _collected(nodes, "num_sampled_nodes"), _collected(nodes, "num_sampled_edges")
    for what, first, counts in (("nodes", 0, per_type[0]), ("edges", 1, per_type[1])):
        for kind, of_hops in counts.items():
            word = kind if isinstance(kind, str) else "__".join(kind)
            of_hops = _plain(of_hops)
            names += [f"{what}_{hop}[{word}]" for hop in range(first, first + len(of_hops))]
            values += of_hops
    return names, values


def _num_labels(batch: Any) -> tuple[int | None, int | None]:
    pairs, sources = _get(batch, "edge_label_index"), _get(batch, "src_index")
    if pairs is not None:
        return int(pairs.shape[1]), None
    if sources is None:
        return None, None
    negatives = _get(batch, "dst_neg_index")
    return len(sources), 0 if negatives is None else int(np.prod(negatives.shape))


def _edges_of(nodes: Any) -> tuple[NDArray[np.integer], NDArray[np.integer], Sequence[int]]:
    """Sources, destinations, and how many edges each hop has."""
    sizes = _get(nodes, "num_sampled_edges")
    edge_index = _get(nodes, "edge_index")
    if edge_index is None:
        row, col = nodes.row, nodes.col
    else:
        row, col = edge_index.detach().cpu().numpy()
    return row, col, [len(row)] if sizes is None else _plain(sizes)


def _nodes_of(batch: Any) -> Any:
    """The sampled part of a batch around links; the batch itself otherwise."""
    if is_batch(batch):  # which count their nodes anew when asked
        return batch
    nodes = getattr(batch, "subgraph", None) if not hasattr(batch, "num_nodes") else None
    nodes = batch if nodes is None else nodes
    if not hasattr(nodes, "num_nodes"):
        raise TypeError(
            f"A batch must be a PyG `Data` or `HeteroData`, but is a {type(batch).__name__}."
            " HINT: `MemoryControl` works with loaders of PyG batches."
        )
    return nodes


def _is_hetero(nodes: Any) -> bool:
    if is_batch(nodes):
        return isinstance(nodes, HeteroData)
    return hasattr(nodes, "node_types") or isinstance(getattr(nodes, "n_id", None), Mapping)


def _get(batch: Any, name: str) -> Any:
    if isinstance(batch, Data):  # from its store: a `DataBatch` has a property `batch_size` of another meaning
        return batch.get(name)
    if isinstance(batch, HeteroData):  # which raises for names of its own that are not there
        return batch._global_store.get(name)
    return getattr(batch, name, None)


def _collected(batch: Any, name: str) -> Mapping[Any, Any]:
    return {kind: value for kind, value in batch.collect(name, allow_empty=True).items() if value is not None}


def _plain(counts: Any) -> list[int]:
    return [int(count) for count in counts]


def _tensors(batch: Any) -> list[Tensor]:
    stores = batch.stores if hasattr(batch, "stores") else [batch]
    return [value for store in stores for value in store.values() if isinstance(value, Tensor)]
