"""Which task a DataModule's arguments describe."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import HeteroData

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.loading.hetero_task import HeteroTask
from lightning_gnnopt.loading.link_graph_task import LinkGraphTask
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.loading.node_task import NodeTask
from lightning_gnnopt.loading.task import GraphTask
from lightning_gnnopt.sampling import check_fanouts

_EVAL_MODES = ("sampled", "layerwise")
_OF_NODES = ("weight_attr", "time_attr", "input_time_attr", "features", "feature_dtype")


def make_task(
    data: Any,
    *,
    links: LinkTask | None,
    input_type: str | None,
    eval_mode: str,
    cached: bool,
    **arguments: Any,
) -> GraphTask:
    """Make the task that loads nodes or links of a graph of one or several types.

    Args:
        data: The graph.
        links: Links to load instead of nodes.
        input_type: Type of the input nodes in a heterogeneous graph.
        eval_mode: How evaluation sees a node's neighbourhood: ``"sampled"`` or ``"layerwise"``.
        cached: Whether rows of features are to be kept on the device.
        **arguments: Those of `GraphDataModule` that concern the graph.

    Raises:
        TypeError: If `links` is no `LinkTask`.
        ValueError: If something is asked for that goes with another kind of graph, or settings of evaluation do not go
            together.
    """
    _check_evaluation(eval_mode, arguments["eval_num_neighbors"], arguments["time_attr"])
    hetero, layerwise = isinstance(data, HeteroData), eval_mode == "layerwise"
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


def _check_evaluation(eval_mode: str, eval_num_neighbors: Any, time_attr: str | None) -> None:
    if eval_mode not in _EVAL_MODES:
        raise ValueError(unknown_name("eval_mode", eval_mode, _EVAL_MODES))
    if eval_mode == "layerwise" and eval_num_neighbors is not None:
        raise ValueError(
            f"`eval_num_neighbors` must be left out with `eval_mode='layerwise'`, but got {eval_num_neighbors}."
            " HINT: layer-wise evaluation always takes all neighbours; `eval_mode='sampled'` uses fan-outs."
        )
    if eval_mode == "layerwise" and time_attr is not None:
        raise ValueError(
            f"`eval_mode='layerwise'` takes all neighbours, those from after a seed's time too, but `time_attr` is"
            f" {time_attr!r}. HINT: `eval_num_neighbors=[-1, -1]` evaluates on the whole past of each seed."
        )
