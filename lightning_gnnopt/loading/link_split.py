"""The links of one stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.sampling.hetero_topology import EdgeType

_NAMES = ("edge_label_index", "edge_label", "edge_label_time")


@dataclass(frozen=True, eq=False)
class LinkSplit:
    """Links to train or evaluate on.

    Attributes:
        edge_label_index: Sources and destinations, integer tensor of shape ``(2, P)``.
        edge_label: A label for each link, shape ``(P, ...)``; None where all of them are just links.
        edge_label_time: A time for each link, shape ``(P,)``, for temporal samplers.
        has_negatives: Whether links labelled 0 are negative ones: then none are drawn.

    Raises:
        ValueError: If there is no link, shapes or types are not as said, or `has_negatives` is set and no label is 0.

    Examples:
        >>> split = LinkSplit(torch.tensor([[0, 1], [2, 2]]), edge_label=torch.tensor([1.0, 0.0]), has_negatives=True)
        >>> split.num_links, split.num_negatives
        (2, 1)
    """

    edge_label_index: Tensor
    edge_label: Tensor | None = None
    edge_label_time: Tensor | None = None
    has_negatives: bool = False

    def __post_init__(self) -> None:
        ends = self.edge_label_index
        is_integer = isinstance(ends, Tensor) and not (ends.is_floating_point() or ends.is_complex())
        if not is_integer or ends.dtype == torch.bool or ends.dim() != 2 or len(ends) != 2:
            found = f"{ends.dtype} of shape {tuple(ends.shape)}" if isinstance(ends, Tensor) else type(ends).__name__
            raise ValueError(
                f"`edge_label_index` must be an integer tensor of shape (2, P), but got {found}."
                " HINT: row 0 holds the links' sources, row 1 their destinations."
            )
        if self.num_links == 0:
            raise ValueError(
                "`edge_label_index` must hold at least one link, but it is empty."
                " HINT: leave the split away to go without it."
            )
        for name in ("edge_label", "edge_label_time"):
            values = getattr(self, name)
            if values is None:
                continue
            shape = tuple(values.shape) if isinstance(values, Tensor) else None
            if not shape or shape[0] != self.num_links or (name == "edge_label_time" and len(shape) != 1):
                found = type(values).__name__ if shape is None else f"shape {shape}"
                raise ValueError(
                    f"`{name}` must be a tensor with one entry for each of the {self.num_links:,} links, but got"
                    f" {found}. HINT: entries stand in the order of the columns of `edge_label_index`."
                )
        if self.has_negatives and not self.num_negatives:
            raise ValueError(
                "`edge_label` must be 0 for some links if `has_negatives` is set, but"
                f" {'there are no labels' if self.edge_label is None else 'no label is'}."
                " HINT: leave `has_negatives` out; `negatives` of the task says which to draw."
            )

    @property
    def num_links(self) -> int:
        """Number of links ``P``, negative ones included."""
        return self.edge_label_index.size(1)

    @property
    def num_negatives(self) -> int:
        """Number of links that are negative ones."""
        return 0 if self.edge_label is None or not self.has_negatives else int(is_zero(self.edge_label).sum())

    @classmethod
    def from_data(cls, data: Data | HeteroData, edge_type: EdgeType | None = None) -> LinkSplit:
        """Read ``edge_label_index``, ``edge_label`` and ``edge_label_time`` of a graph.

        Labels of 0 that stand behind all others are negative links: PyG's `RandomLinkSplit` appends them so, and moves
        classes up by one to make room. Labels of 0 elsewhere are a class.

        Args:
            data: A graph, such as `RandomLinkSplit` returns.
            edge_type: The links' type in a `HeteroData`; may be left out if only one type has links.

        Returns:
            The links.

        Raises:
            ValueError: If there are no links, or those of several types and `edge_type` does not choose.
        """
        storage: Any = data
        if isinstance(data, HeteroData):
            storage = data[find_edge_type(data, edge_type)]
        values: dict[str, Any] = {name: getattr(storage, name, None) for name in _NAMES}
        if values["edge_label_index"] is None:
            raise ValueError(
                f"`data` must hold `edge_label_index`, a split's links, but holds {', '.join(sorted(storage.keys()))}."
                " HINT: `torch_geometric.transforms.RandomLinkSplit` makes splits; leave out its `split_labels`."
            )
        label = values["edge_label"]
        has_negatives = False
        if label is not None and len(label):
            zeros = is_zero(label)
            num_zeros = int(zeros.sum())
            has_negatives = 0 < num_zeros < len(label) and bool(zeros[-num_zeros:].all())
        return cls(**values, has_negatives=has_negatives)

    def check_ids(self, num_sources: int, num_targets: int, *, name: str = "edge_label_index") -> None:
        """Refuse links whose ends are not in the graph.

        Args:
            num_sources: Number of nodes that may be sources.
            num_targets: Number of nodes that may be destinations.
            name: What the error calls the links.

        Raises:
            ValueError: If an end is no node.
        """
        for ids, count, side in zip(self.edge_label_index, (num_sources, num_targets), _SIDES, strict=True):
            lowest, highest = int(ids.min()), int(ids.max())
            if lowest < 0 or highest >= count:
                raise ValueError(
                    f"`{name}` must hold {side} from 0 to {count - 1:,} ({count:,} nodes), but found"
                    f" {lowest if lowest < 0 else highest:,}."
                    " HINT: ids are those of the graph that is sampled, for each end among the nodes of its type."
                )


_SIDES = ("sources", "destinations")


def is_zero(label: Tensor) -> Tensor:
    """Which labels, shape ``(P, ...)``, are 0 throughout: bool tensor of shape ``(P,)``."""
    return label.reshape(len(label), -1).eq(0).all(1)


def find_edge_type(data: HeteroData, edge_type: EdgeType | None) -> EdgeType:
    """Find the edge type whose links are to be read.

    Raises:
        ValueError: If none has links, or several have and `edge_type` does not choose.
    """
    known: list[EdgeType] = [name for name in data.edge_types if "edge_label_index" in data[name]]
    if edge_type is None and len(known) == 1:
        return known[0]
    if edge_type not in known:
        raise ValueError(
            f"`edge_type` must be a type with `edge_label_index`, one of {known}, but got {edge_type}."
            " HINT: `RandomLinkSplit(edge_types=[...])` makes the splits of these types."
        )
    assert edge_type is not None
    return edge_type


def without_links(data: Data | HeteroData) -> Data | HeteroData:
    """Take the links of a split out of a graph: what batches are cut from is the rest.

    A batch has the labels of its own links by the same names; and as many links as edges would pass for an attribute of
    edges.

    Args:
        data: The graph; it is left as it is.

    Returns:
        A shallow copy without ``edge_label_index``, ``edge_label`` and ``edge_label_time``.
    """
    rest = data.__copy__()
    for storage in rest.stores:
        if "edge_label_index" not in storage:
            continue  # an attribute of edges may be called `edge_label`
        for name in _NAMES:
            if name in storage:
                del storage[name]
    return rest
