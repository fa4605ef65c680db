"""What a stretch of time or an allocation belongs to."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Phase = Literal["wait", "transfer", "forward", "backward", "optimizer", "callbacks", "validation", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Phases of a training step, as the training loop sees them; together they are the step, and do not overlap.

``wait``: for the loader. ``transfer``: the batch to the device. ``optimizer``: its step without what Lightning runs
within it. ``callbacks``: of the Trainer. ``validation``: within the fit. ``other``: what lies between.
"""

Kind = Literal["vertex", "edge", ""]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a layer computes for each vertex, for each edge, or, ``""``, what is no layer's."""

Part = Literal["gather", "message", "aggregate", "update", "fused", "edge_update", "normalize", ""]
PARTS: tuple[Part, ...] = get_args(Part)
"""Steps of an edge computation.

``gather``: rows of vertices to edges. ``message``: what edges compute. ``aggregate``: edges to vertices. ``update``:
what follows it within `propagate`. ``fused``: message and aggregate in one operator, or a `propagate` of the layer's
own. ``edge_update``: of `edge_updater`, attention coefficients, say. ``normalize``: weights and self loops of the
edges, outside of `propagate`. ``""``: no edge computation.
"""


class Label(NamedTuple):
    """What a stretch of time or an allocation belongs to.

    Attributes:
        phase: One of `PHASES`.
        layer: Name of the layer, as in `named_modules`; ``""`` outside all layers.
        kind: One of `KINDS`.
        part: One of `PARTS`.
    """

    phase: str
    layer: str = ""
    kind: str = ""
    part: str = ""
