"""Rules on what the layers of message passing compute."""

from __future__ import annotations

from typing import NamedTuple

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.conclusions.words import percent

EDGE_SHARE = 0.60
"""Share of the layers' time from which on edge computation dominates."""
VERTEX_SHARE = 0.40
"""Share of the layers' time up to which it leaves the field to vertex computation."""
MOVING_SHARE = 0.60
"""Share of the edge computation from which on gather, message and aggregate together are worth fusing."""
MESSAGE_SHARE = 0.30
"""Share of the edge computation above which messages compute too much to be called simple."""

_REMEDIES = {
    "gather": "rows are copied once for each edge: transform them to the smaller width before `propagate`, and keep the"
    " layer narrow",
    "message": "what a message computes from one of its ends only can be computed once for each vertex, before"
    " `propagate`; fewer or smaller heads make messages narrower",
    "aggregate": "edges sorted by destination, sums and means instead of sorting or learned aggregations, and narrower"
    " messages make it cheaper",
    "update": "it runs once for each vertex after each aggregation: move what it can share out of `propagate`",
    "fused": "it is one operator already: a narrower layer or fewer edges make it cheaper",
    "edge_update": "it computes coefficients of edges, such as attention: fewer heads, or coefficients that are sums of"
    " what each end gives, make it cheaper",
    "normalize": "weights and self loops of the edges are made anew in each layer: make them once for each batch, and"
    " pass them to all layers",
}


class EdgeWork(NamedTuple):
    """How much of the layers' time is edge computation, and what most of it is.

    Attributes:
        share: Share of edge computation in that of edges and vertices.
        part: The largest part of it; ``""`` if there are none.
        part_share: That part's share of the edge computation.
    """

    share: float
    part: str
    part_share: float


def edge_work(facts: Facts) -> EdgeWork | None:
    """Sum up the layers; None if no time was spent in any."""
    edge_s, vertex_s = facts.kind_s.get("edge", 0.0), facts.kind_s.get("vertex", 0.0)
    if edge_s + vertex_s <= 0:
        return None
    parts_s = sum(facts.part_s.values())
    part = max(facts.part_s, key=lambda name: facts.part_s[name]) if parts_s > 0 else ""
    return EdgeWork(edge_s / (edge_s + vertex_s), part, facts.part_s[part] / parts_s if parts_s > 0 else 0.0)


def edge_dominates(facts: Facts) -> Advice | None:
    """Layers spend most of their time on edges."""
    work = edge_work(facts)
    if work is None or work.share < EDGE_SHARE:
        return None
    finding = f"Edge computation is {percent(work.share)} of the layers' time{_of_step(facts, 'edge')}"
    if work.part:
        finding += f": {work.part} dominates with {percent(work.part_share)} of it"
    fewer = "Fewer edges (smaller fan-outs, `sampler='labor'`) shorten all of it"
    remedy = f"{fewer}; {_REMEDIES[work.part]}." if work.part in _REMEDIES else f"{fewer}."
    return Advice(rule="edge_dominates", finding=f"{finding}.", remedy=remedy)


def vertex_dominates(facts: Facts) -> Advice | None:
    """Layers spend most of their time on vertices."""
    work = edge_work(facts)
    if work is None or work.share > VERTEX_SHARE:
        return None
    return Advice(
        rule="vertex_dominates",
        finding=f"Vertex computation is {percent(1 - work.share)} of the layers' time{_of_step(facts, 'vertex')}.",
        remedy="Dense products grow with the square of the width: a smaller hidden size, lower precision"
        " (`precision='bf16-mixed'` where the device has it), or fewer nodes in a batch shorten it; pruning edges does"
        " not.",
    )


def fused_helps(facts: Facts) -> Advice | None:
    """Messages are simple, and moving them takes the time."""
    work, parts_s = edge_work(facts), sum(facts.part_s.values())
    if work is None or work.share < EDGE_SHARE or parts_s <= 0 or facts.part_s.get("fused", 0.0) > 0:
        return None
    message_s = facts.part_s.get("message", 0.0)
    moving_s = facts.part_s.get("gather", 0.0) + message_s + facts.part_s.get("aggregate", 0.0)
    if moving_s / parts_s < MOVING_SHARE or message_s / parts_s > MESSAGE_SHARE:
        return None
    return Advice(
        rule="fused_helps",
        finding=f"Gather, message and aggregate are {percent(moving_s / parts_s)} of the edge computation, but message"
        f" only {percent(message_s / parts_s)}: rows are moved to edges and back, and little is computed there.",
        remedy="A layer that has a `message_and_aggregate` (GCNConv, SAGEConv, GraphConv) does it in one operator and"
        " makes no messages, if it is given a `SparseTensor`, or, where it supports that (GraphConv), an `EdgeIndex`"
        " sorted by column (`GraphDataModule(edge_format='csc')`); layers without one gain nothing.",
    )


def _of_step(facts: Facts, kind: str) -> str:
    return f" and {percent(facts.kind_s.get(kind, 0.0) / facts.step_s)} of the step" if facts.step_s else ""
