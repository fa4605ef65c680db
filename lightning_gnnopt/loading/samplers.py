"""Which samplers a DataModule builds: by name or by function, for training and for evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_geometric.data import Data

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sampling import ClusterSampler, NeighborSampler, NodeSampler, Topology, check_fanouts
from lightning_gnnopt.sampling.registry import resolve_sampler

# What a name alone does not say, as an example that a user can copy.
_NEEDS = {
    "ladies": "layer_sizes=[512, 512]",
    "fastgcn": "layer_sizes=[512, 512]",
    "cluster": "num_parts=1500",
    "saint-walk": "walk_length=2",
}


class SamplerMaker:
    """Builds the samplers of a graph.

    Args:
        sampler: Name of a sampler, a function that builds one from a `Topology`, or a built one.
        num_neighbors: Fan-outs of a sampler that is named; ``[15, 10]`` by default.
        options: Further arguments of the sampler, see :func:`graph_options`.

    Raises:
        TypeError: If the sampler is an object of another kind, one of PyG's, say.
        ValueError: If the name is unknown or does not say enough, or the sampler does not take an argument.
    """

    def __init__(
        self,
        sampler: str | Callable[..., NodeSampler] | NodeSampler,
        num_neighbors: Sequence[int] | None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(sampler, str | NodeSampler) and not callable(sampler):
            raise TypeError(
                "`sampler` must be a name, a function of a `Topology`, or a `NodeSampler` of this package, but got"
                f" {type(sampler).__module__}.{type(sampler).__qualname__}. HINT:"
                " `sampler=functools.partial(NeighborSampler, num_neighbors=[15, 10])`, say."
            )
        self.built = sampler if isinstance(sampler, NodeSampler) else None
        if isinstance(sampler, NodeSampler):
            given = {"num_neighbors": num_neighbors is not None, "weight_attr` or `time_attr": bool(options)}
            for name, is_given in given.items():
                if is_given:
                    raise ValueError(
                        f"`{name}` must be left out with a sampler that is built already, but the sampler is"
                        f" {sampler!r}. HINT: build it with them."
                    )
            sampler = type(sampler)
        if callable(sampler) and num_neighbors is not None:
            raise ValueError(
                f"`num_neighbors` must be left out with a `sampler` function, but got {list(num_neighbors)}."
                " HINT: give the fan-outs to the sampler itself."
            )
        self._make = sampler if callable(sampler) else _by_name(sampler, num_neighbors)
        self._options = options or {}
        parameters = self._parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for name in self._options:
            if name not in parameters and not takes_any:
                raise ValueError(
                    f"`{'weight_attr' if name == 'edge_weight' else 'time_attr'}` needs a sampler that takes `{name}`,"
                    f" but {getattr(self._kind, '__name__', 'the `sampler` function')} does not."
                    f" HINT: `sampler='neighbor'` does; a function of your own must take `{name}` as a keyword."
                )

    @property
    def trains_only(self) -> bool:
        """Whether the sampler is known to be of no use in evaluation, before it is built."""
        return isinstance(self._kind, type) and trains_only(self._kind)

    def for_training(self, topology: Topology, nodes: NDArray[np.integer] | None) -> NodeSampler:
        """Build the sampler of the training batches.

        Args:
            topology: The graph.
            nodes: The training nodes; a sampler that takes `roots` is told, unless it was told others.
        """
        if self.built is not None:
            return self.built
        roots = self._parameters.get("roots")
        if nodes is None or roots is None or roots.default is not None:
            return self._make(topology, **self._options)
        return self._make(topology, roots=nodes, **self._options)

    def for_evaluation(self, topology: Topology, num_neighbors: Sequence[int]) -> NodeSampler:
        """Build a node-wise sampler with other fan-outs, which draws by the same weights and times."""
        if self._options and "num_neighbors" in self._parameters:
            return self._make(topology, num_neighbors=num_neighbors, **self._options)
        return NeighborSampler(topology, num_neighbors, **self._options)

    @property
    def _kind(self) -> Any:
        kind: Any = self._make
        while isinstance(kind, partial):
            kind = kind.func
        return kind

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(self._make).parameters
        except (TypeError, ValueError):  # something that is built in
            return {}


def _by_name(name: str, num_neighbors: Sequence[int] | None) -> Callable[..., NodeSampler]:
    make = resolve_sampler(name)
    if "num_neighbors" in inspect.signature(make).parameters:
        return partial(make, num_neighbors=check_fanouts((15, 10) if num_neighbors is None else num_neighbors))
    example = _NEEDS.get(name)
    hint = f" HINT: pass `sampler=functools.partial({getattr(make, '__name__', name)}, {example})`"
    hint += f", or run `gnnopt-train sampler={name}`."
    if num_neighbors is not None:
        raise ValueError(
            f"`num_neighbors` must be left out with `sampler={name!r}`, which has no fan-outs, but got"
            f" {list(num_neighbors)}.{hint if example else ' HINT: drop it.'}"
        )
    if example:
        raise ValueError(f"`sampler={name!r}` needs `{example.partition('=')[0]}`, which a name does not say.{hint}")
    return make


def trains_only(sampler: NodeSampler | type) -> bool:
    """Whether a sampler's batches are not the neighbourhoods of the seeds that are asked for."""
    own_seeds = getattr(sampler, "draws_own_seeds", False)
    grouped = issubclass(sampler, ClusterSampler) if isinstance(sampler, type) else hasattr(sampler, "seed_groups")
    return bool(own_seeds or grouped)


def refuse_evaluation(name: str) -> ValueError:
    """Make the error for sampled evaluation with a sampler that only trains."""
    return ValueError(
        f"`eval_mode='sampled'` needs `eval_num_neighbors` with {name}, whose batches are subgraphs to train on, not"
        " neighbourhoods of the seeds. HINT: `eval_mode='layerwise'` evaluates exactly, `eval_num_neighbors=[15, 10]`"
        " on sampled neighbours."
    )


def graph_options(
    data: Data,
    *,
    weight_attr: str | None,
    time_attr: str | None,
    input_time_attr: str | None,
    times_of_inputs: bool = True,
) -> dict[str, Any]:
    """Take a sampler's weights and times from a graph.

    Args:
        data: The graph.
        weight_attr: Name of an attribute of edges.
        time_attr: Name of an attribute of nodes or edges.
        input_time_attr: Name of an attribute of nodes.
        times_of_inputs: Whether inputs have their times from here; links have their own.

    Returns:
        `edge_weight`, or `node_time` or `edge_time` with ``disjoint=True``; empty if nothing is named.

    Raises:
        ValueError: If an attribute is missing, both weights and times are named, or times do not go together.
    """
    of_edges = [name for name in data.keys() if name != "edge_index" and data.is_edge_attr(name)]  # noqa: SIM118
    of_nodes = [name for name in data.keys() if data.is_node_attr(name)]  # noqa: SIM118
    named = {
        "weight_attr": (weight_attr, of_edges, "edges"),
        "time_attr": (time_attr, of_nodes + of_edges, "nodes or edges"),
        "input_time_attr": (input_time_attr, of_nodes, "nodes"),
    }
    for argument, (name, known, what) in named.items():
        if name is not None and name not in known:
            raise ValueError(f"{unknown_name(argument, name, known)} HINT: it must be an attribute of the {what}.")
    if weight_attr is not None and time_attr is not None:
        raise ValueError(
            f"`weight_attr` and `time_attr` cannot be combined, but got {weight_attr!r} and {time_attr!r}."
            " HINT: draw by weight, or from the past."
        )
    if input_time_attr is not None and time_attr is None:
        raise ValueError(
            f"`input_time_attr` needs `time_attr`, but got {input_time_attr!r} alone. HINT: name the times of the"
            " graph's nodes or edges as well."
        )
    if weight_attr is not None:
        return {"edge_weight": data[weight_attr]}
    if time_attr is None:
        return {}
    if time_attr in of_nodes:
        return {"node_time": data[time_attr], "disjoint": True}
    if input_time_attr is None and times_of_inputs:
        raise ValueError(
            f"`time_attr` names times of edges, {time_attr!r}, so `input_time_attr` must say when each seed is looked"
            " at, but it is None. HINT: name an attribute of nodes, such as the time of their label."
        )
    return {"edge_time": data[time_attr], "disjoint": True}
