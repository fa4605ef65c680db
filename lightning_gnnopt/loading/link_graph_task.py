"""Links of a graph."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_gnnopt.loading.hetero_task import HeteroTask
from lightning_gnnopt.loading.link_source import LinkSource
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.loading.node_task import NodeTask
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.task import GraphTask, Surroundings, checked_stage


class LinkGraphTask(GraphTask):
    """The links that a user names, in a graph that is sampled around their ends.

    Args:
        graph: Samples the graph and builds the batches.
        links: The links, and the negatives to draw.
    """

    def __init__(self, graph: NodeTask | HeteroTask, links: LinkTask) -> None:
        super().__init__()
        self.graph = graph
        self.links = links

    @property
    @override
    def data(self) -> Any:
        return self.graph.data

    @property
    @override
    def num_features(self) -> int:
        return self.graph.num_features

    @property
    @override
    def num_classes(self) -> int:
        return self.graph.num_classes

    @property
    @override
    def multilabel(self) -> bool:
        return self.graph.multilabel

    @property
    @override
    def topology(self) -> Any:
        return self.graph.topology

    @override
    def has(self, stage: str) -> bool:
        return checked_stage(stage) in self.links.splits

    @override
    def missing(self, stage: str) -> ValueError:
        return ValueError(
            f"`links` must hold links for {stage!r}, but has only {list(self.links.splits)}."
            f" HINT: `LinkTask({stage}=LinkSplit(edge_label_index), ...)`."
        )

    @override
    def sampler(self, stage: str) -> Any:
        return self.graph.sampler(stage)

    @override
    def build(self, surroundings: Surroundings) -> None:
        self.graph.build(surroundings)
        self.links.check(self.graph.topology)
        sampler = self.graph.sampler("train")
        if getattr(sampler, "temporal", False) and sampler.node_time is None:
            for stage, split in self.links.splits.items():
                if split.edge_label_time is None:
                    raise ValueError(
                        f"`{stage}.edge_label_time` must say when each link is looked at, as `time_attr` names times of"
                        " edges, but it is None. HINT: give `LinkSplit` the times of its links."
                    )

    @override
    def source(self, stage: str) -> LinkSource:
        return self.links.source(stage, self.graph.sampler(stage), self.graph.builder)

    @override
    def order(self, stage: str, batch_size: int, **arguments: Any) -> SeedOrder:
        return SeedOrder(self.links.splits[stage].num_links, batch_size, **arguments)
