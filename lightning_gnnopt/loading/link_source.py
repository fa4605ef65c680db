"""Batches around links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.fields import array_field, ids_field
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.plan import BatchPlan, Field
from lightning_gnnopt.sampling import HeteroTopology, LinkSampler, LinkSubgraph, SampleKey, Subgraph
from lightning_gnnopt.sampling.link_ends import num_ends

# Of a whole split: a batch has its own, or none.
_OF_THE_GRAPH = ("edge_label_index", "edge_label", "edge_label_time")


class LinkSource:
    """A `BatchSource` whose batches carry what PyG's `LinkNeighborLoader` puts into its own.

    A batch is what the builder makes of the subgraph, with ``input_id``, the links' places in the split, and without
    ``batch_size``. Unless negatives are triplets it has ``edge_label_index``, places in ``n_id``, the links first and
    then the negatives; ``edge_label``, if there are labels or negatives; and ``edge_label_time``, if links have times.
    With triplets it has ``src_index``, ``dst_pos_index`` and ``dst_neg_index``, of shape ``(P,)`` or ``(P, amount)``,
    and ``seed_time``. In a `HeteroData` these are the links' edge type's, and for triplets those of its two node types.
    As in PyG, labels are raised by one if the lowest is 0 and negatives are drawn that get it.

    Args:
        sampler: Draws the negatives and the subgraphs; of its node sampler's graph.
        builder: Slices the graph's attributes to them.
        split: The links.

    Raises:
        ValueError: If `sampler` and `builder` are not for graphs of the same kind, an end of a link is not in the
            graph, or negatives are to be drawn for links that have labels (triplets) or negatives already.
    """

    def __init__(self, sampler: LinkSampler, builder: BatchBuilder | HeteroBatchBuilder, split: LinkSplit) -> None:
        topology = sampler.sampler.topology
        if isinstance(topology, HeteroTopology) != isinstance(builder, HeteroBatchBuilder):
            raise ValueError(
                f"`builder` must build batches of what `sampler` samples, a {type(topology).__name__}, but is a"
                f" {type(builder).__name__}. HINT: a `HeteroBatchBuilder` belongs to a `HeteroNeighborSampler`."
            )
        split.check_ids(*num_ends(topology, sampler.edge_type))
        label = split.edge_label
        if sampler.negatives is not None and split.has_negatives:
            raise ValueError(
                f"`negatives` of `sampler` must be None for links that have {split.num_negatives:,} negatives already,"
                f" but it is {sampler.negatives!r}. HINT: a `LinkTask` sees to that by itself."
            )
        if sampler.negatives == "triplet" and label is not None:
            raise ValueError(
                "`edge_label` must be None for triplets, whose loss compares destinations, but labels were given."
                ' HINT: leave them away, or use negatives="binary".'
            )
        if sampler.negatives == "binary" and label is not None and label.min() == 0:
            label = label + 1
        self.sampler = sampler
        self.builder = builder
        self._sources, self._targets = split.edge_label_index.detach().cpu().numpy()
        self._label = None if label is None else label.detach().cpu().numpy()
        self._time = None if split.edge_label_time is None else split.edge_label_time.detach().cpu().numpy()

    @property
    def num_inputs(self) -> int:
        """Number of links, without negatives that are to be drawn."""
        return len(self._sources)

    def sample(self, input_id: NDArray[np.int64], key: SampleKey) -> LinkSubgraph:
        """Draw negatives of the links at these places, shape ``(P,)``, and the subgraph around all ends."""
        label = None if self._label is None else self._label[input_id]
        time = None if self._time is None else self._time[input_id]
        return self.sampler.sample(self._sources[input_id], self._targets[input_id], key, label=label, time=time)

    def plan(self, sampled: LinkSubgraph, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out the batch of what was drawn."""
        fields = _fields(sampled)
        if isinstance(self.builder, BatchBuilder):
            assert isinstance(sampled.subgraph, Subgraph)
            return _extended(self.builder.plan(sampled.subgraph, input_id), fields, _finish)
        edge_type = self.sampler.edge_type
        assert edge_type is not None
        assert not isinstance(sampled.subgraph, Subgraph)
        homes: dict[str, tuple[str, ...]] = {
            "src_index": edge_type[:1],
            "dst_pos_index": edge_type[2:],
            "dst_neg_index": edge_type[2:],
        }
        homes["seed_time"] = edge_type[::2]

        def finish(batch: HeteroData, tensors: dict[str, Tensor]) -> None:
            links = batch[edge_type]
            for name in _OF_THE_GRAPH:
                links.pop(name, None)
            for name, tensor in tensors.items():
                for home in homes.get(name, (edge_type,)):
                    batch[home][name] = tensor

        return _extended(self.builder.plan(sampled.subgraph, edge_type, input_id), fields, finish)

    def __repr__(self) -> str:
        return repr(self.sampler)


def _fields(sampled: LinkSubgraph) -> dict[str, Field]:
    """What a batch says of its links, by PyG's names."""
    ids = {name: getattr(sampled, name) for name in ("edge_label_index", "src_index", "dst_pos_index", "dst_neg_index")}
    # A batch has fewer than 2**31 nodes: its local ids are int32 everywhere else too.
    fields = {name: ids_field(values.astype(np.int32)) for name, values in ids.items() if values is not None}
    if sampled.edge_label is not None:
        fields["edge_label"] = array_field(sampled.edge_label)
    if sampled.time is not None:
        name = "seed_time" if sampled.edge_label_index is None else "edge_label_time"
        fields[name] = array_field(sampled.time)
    return fields


def _finish(batch: Data, tensors: dict[str, Tensor]) -> None:
    """Make a batch around nodes one around links."""
    del batch["batch_size"]
    for name in _OF_THE_GRAPH:
        if name in batch:
            del batch[name]
    for name, tensor in tensors.items():
        batch[name] = tensor


def _extended(plan: BatchPlan, fields: dict[str, Field], finish: Callable[[Any, dict[str, Tensor]], None]) -> BatchPlan:
    """Add tensors to a batch; `finish` is called with the batch and with these tensors, by name."""
    num_fields = len(plan.fields)

    def assemble(tensors: Sequence[Tensor]) -> Any:
        batch = plan.assemble(tensors[:num_fields])
        finish(batch, dict(zip(fields, tensors[num_fields:], strict=True)))
        return batch

    return BatchPlan([*plan.fields, *fields.values()], assemble, plan.num_nodes, plan.num_edges)
