"""What is known about a dataset before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known about a dataset before it is loaded.

    Counts are the published ones, `None` where options decide. Edges are directed edges after symmetrising and
    dropping self loops, so an undirected edge counts twice.

    Attributes:
        name: Name in the registry.
        summary: One or two sentences: what nodes, edges, features and classes are.
        num_nodes: Number of nodes.
        num_edges: Number of directed edges.
        num_features: Width of ``x``.
        num_classes: Number of classes; for a multi-label set, the number of labels.
        multilabel: Whether a node has several labels, so that ``y`` is a float tensor of shape ``(N, num_classes)``.
        source: How the set is obtained.
        citation: Licence and the paper to cite.
        splits: Published splits, the default first; ``"random"`` is always possible as well.
        options: Names of the keyword arguments that are the set's own.
    """

    name: str
    summary: str
    num_nodes: int | None = None
    num_edges: int | None = None
    num_features: int | None = None
    num_classes: int | None = None
    multilabel: bool = False
    source: str = ""
    citation: str = ""
    splits: tuple[str | int, ...] = ()
    options: tuple[str, ...] = ()
