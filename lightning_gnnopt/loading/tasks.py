"""Which task a DataModule's arguments describe."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import HeteroData

from lightning_gnnopt.loading.hetero_task import HeteroTask
from lightning_gnnopt.loading.link_graph_task import LinkGraphTask
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.loading.node_task import NodeTask
from lightning_gnnopt.loading.task import GraphTask
from lightning_gnnopt.sampling import check_fanouts

_OF_NODES = ("weight_attr", "time_attr", "input_time_attr", "features", "feature_dtype")


def make_task(
    data: Any,
    *,
    links: LinkTask | None,
    input_type: str | None,
    layerwise: bool,
    cached: bool,
    **arguments: Any,
) -> GraphTask:
    """Make the task that loads nodes or links of a graph of one or several types.

    Args:
        data: The graph.
        links: Links to load instead of nodes.
        input_type: Type of the input nodes in a heterogeneous graph.
        layerwise: Whether evaluation is layer-wise.
        cached: Whether rows of features are to be kept on the device.
        **arguments: Those of `GraphDataModule` that concern the graph.

    Raises:
        TypeError: If `links` is no `LinkTask`.
        ValueError: If something is asked for that goes with another kind of graph.
    """
    hetero = isinstance(data, HeteroData)
    if links is not None and not isinstance(links, LinkTask):
        raise TypeError(
            f"`links` must be a `LinkTask`, but got {type(links).__name__}."
            " HINT: `LinkTask(train=LinkSplit(edge_label_index))`; `LinkTask.from_splits` reads what `RandomLinkSplit`"
            " makes."
        )
    refused = {"eval_mode='layerwise'": layerwise, "cache": cached} if hetero or links is not None else {}
    if links is not None:
        refused["input_time_attr"] = arguments["input_time_attr"] is not None  # `LinkSplit` has the links' times
    if hetero:
        refused |= {name: arguments[name] is not None for name in _OF_NODES}
        refused["edge_format"] = arguments["edge_format"] != "coo"
    for name, is_set in refused.items():
        if is_set:
            raise ValueError(
                f"`{name}` is for {'homogeneous graphs' if hetero else 'nodes, not for links'}, but `data` is a"
                f" {type(data).__name__}{' and `links` are given' if links is not None else ''}. HINT: leave it out."
            )
    if input_type is not None and not hetero:
        raise ValueError(
            f"`input_type` is for a `HeteroData`, but `data` is a {type(data).__name__} and `input_type` is"
            f" {input_type!r}. HINT: leave it out."
        )
    task: NodeTask | HeteroTask
    if hetero:
        names = ("sampler", "num_neighbors", "eval_num_neighbors", "edge_id", "num_classes")
        own = {name: arguments[name] for name in names}
        task = HeteroTask(data, input_type=input_type, needs_inputs=links is None, **own)
    else:
        if arguments["eval_num_neighbors"] is not None:
            fanouts = check_fanouts(arguments["eval_num_neighbors"], name="eval_num_neighbors")
            arguments["eval_num_neighbors"] = fanouts
        task = NodeTask(data, layerwise=layerwise, has_inputs=links is None, **arguments)
    return task if links is None else LinkGraphTask(task, links)
