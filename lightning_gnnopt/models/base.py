"""The shape every network of this package has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex

from lightning_gnnopt._names import unknown_name

_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class SampledGNN(nn.Module):
    """A stack of message-passing layers that runs on sampled batches, full graphs and layer by layer.

    A subclass fills ``self.convs`` with one layer per pair of ``self.channels`` and, where the defaults do not
    suit it, overrides :meth:`convolve` and :meth:`activate`. Its layers take a keyword `edge_norm` if it is to run on
    batches that bring one.

    With per-hop counts, a layer computes only the rows that the next layer reads: the last one computes the seeds and
    nothing else. This drops the edges that PyG's ``trim_to_layer`` drops and, beyond it, the outermost hop's output
    rows, which have no in-edges in the batch and would only cost time and blur the statistics of a batch norm.

    Args:
        in_channels: Number of features per node.
        hidden_channels: Width of the layers between the first and the last.
        out_channels: Number of outputs per node.
        num_layers: Number of layers, at least 1.
        dropout: Probability to drop an element of a hidden representation, in ``[0, 1)``.
        norm: Normalisation between two layers, before the activation: ``"batch"``, ``"layer"`` or None.

    Raises:
        ValueError: If a size is below 1, `dropout` is outside ``[0, 1)`` or `norm` is unknown.
    """

    needs_in_degree: ClassVar[bool] = False
    """Whether a sampled batch must bring the in-degrees its nodes have in the full graph."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        *,
        dropout: float = 0.5,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {size}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1, but got {dropout}.")
        if norm is not None and norm not in _NORMS:
            raise ValueError(unknown_name("norm", norm, _NORMS) + " HINT: pass `norm=None` for no normalisation.")
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.out_channels = out_channels
        self.num_layers = num_layers
        self.dropout = dropout
        self.channels = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        if norm is not None:
            self.norms.extend(_NORMS[norm](hidden_channels) for _ in range(num_layers - 1))

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for child in self.children():
            modules: Iterable[Any] = child if isinstance(child, nn.ModuleList) else [child]
            for module in modules:
                module.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        *,
        num_sampled_nodes_per_hop: Sequence[int] | None = None,
        num_sampled_edges_per_hop: Sequence[int] | None = None,
        in_degree: Tensor | None = None,
        edge_norm: Tensor | None = None,
    ) -> Tensor:
        """Compute the outputs of all nodes, or, given per-hop counts, of the seeds.

        Args:
            x: Node features of shape ``(N, in_channels)``; in a sampled batch the seeds come first, then hop after hop.
            edge_index: Long tensor of shape ``(2, E)``, source above destination, in a sampled batch hop after hop; or
                an `EdgeIndex`.
            num_sampled_nodes_per_hop: ``[seeds, hop 1, ...]``, ``H + 1`` counts with ``H >= num_layers``.
            num_sampled_edges_per_hop: ``[hop 1, ...]``, ``H`` counts.
            in_degree: Shape ``(N,)``, each node's number of in-edges in the full graph, self loops not counted. Only
                nets with `needs_in_degree` read it; None counts the edges in `edge_index`, right for a full graph only.
            edge_norm: Shape ``(E,)``, how many in-edges of its destination in the full graph each edge stands for; None
                if those of a destination all stand for equally many.

        Returns:
            Tensor of shape ``(N, out_channels)``, or ``(seeds, out_channels)`` with per-hop counts.

        Raises:
            ValueError: If the per-hop counts are too few for the net's depth or do not fit `x` and `edge_index`, or
                `edge_norm` does not fit `edge_index`.
        """
        if isinstance(edge_index, EdgeIndex):
            edge_index = edge_index.as_tensor().long()  # it is cut hop by hop, and not compressed then
        if (num_sampled_nodes_per_hop is None) != (num_sampled_edges_per_hop is None):
            raise ValueError(
                "`num_sampled_nodes_per_hop` and `num_sampled_edges_per_hop` must be given together, but one is None."
            )
        if edge_norm is not None:
            if edge_norm.shape != (edge_index.size(1),):
                raise ValueError(
                    f"`edge_norm` must hold one weight for each of the batch's {edge_index.size(1):,} edges, but its"
                    f" shape is {tuple(edge_norm.shape)}. HINT: whatever adds or removes edges after sampling must keep"
                    " it up to date."
                )
            edge_norm = edge_norm.to(x.dtype)
        in_degree = self._full_degree(x, edge_index, in_degree)
        num_targets = x.size(0)
        for layer in range(self.num_layers):
            if num_sampled_nodes_per_hop is not None and num_sampled_edges_per_hop is not None:
                if layer == 0:
                    check_hops(self.num_layers, num_sampled_nodes_per_hop, num_sampled_edges_per_hop, x, edge_index)
                hops = self.num_layers - layer  # what lies further out no longer reaches the seeds
                x = x[: sum(num_sampled_nodes_per_hop[: hops + 1])]
                edge_index = edge_index[:, : sum(num_sampled_edges_per_hop[:hops])]
                edge_norm = None if edge_norm is None else edge_norm[: edge_index.size(1)]
                num_targets = sum(num_sampled_nodes_per_hop[:hops])
            x = self._layer(layer, x, edge_index, num_targets, in_degree, edge_norm)
            if layer < self.num_layers - 1:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x

    @torch.no_grad()
    def inference_per_layer(
        self, layer: int, x: Tensor, edge_index: Tensor, batch_size: int, *, in_degree: Tensor | None = None
    ) -> Tensor:
        """Compute one layer's output, activation included, for the destinations of a one-hop batch.

        Applied to all nodes layer after layer with full neighbourhoods, this gives exactly what :meth:`forward` gives
        on the full graph in eval mode, without ever holding more than one batch's edges. Name and argument order
        are those of PyG's ``BasicGNN.inference_per_layer``.

        Args:
            layer: Index of the layer, from 0.
            x: The previous layer's output (layer 0: the features) of the batch's nodes, shape ``(N, C_in)``; the first
                `batch_size` rows are the destinations.
            edge_index: Long tensor of shape ``(2, E)`` with all in-edges of the destinations, source above destination.
            batch_size: Number of destinations.
            in_degree: As in :meth:`forward`, for the ``N`` nodes of this batch.

        Returns:
            Tensor of shape ``(batch_size, C_out)``.
        """
        return self._layer(layer, x, edge_index, batch_size, self._full_degree(x, edge_index, in_degree))

    def convolve(
        self,
        layer: int,
        x: Tensor,
        edge_index: Tensor,
        num_targets: int,
        in_degree: Tensor | None,
        edge_norm: Tensor | None,
    ) -> Tensor:
        """Run one layer's message passing from all rows of `x` to the first `num_targets` of them."""
        # By name: the third argument of a layer of PyG's may be something else
        weights = {} if edge_norm is None else {"edge_norm": edge_norm}
        out: Tensor = self.convs[layer]((x, x[:num_targets]), edge_index, **weights)
        return out

    def activate(self, x: Tensor) -> Tensor:
        """Apply the non-linearity between two layers."""
        return torch.relu(x)

    def _layer(
        self,
        layer: int,
        x: Tensor,
        edge_index: Tensor,
        num_targets: int,
        in_degree: Tensor | None,
        edge_norm: Tensor | None = None,
    ) -> Tensor:
        x = self.convolve(layer, x, edge_index, num_targets, in_degree, edge_norm)
        if layer == self.num_layers - 1:
            return x
        if self.norms:
            x = self.norms[layer](x)
        return self.activate(x)

    def _full_degree(self, x: Tensor, edge_index: Tensor, in_degree: Tensor | None) -> Tensor | None:
        if self.needs_in_degree and in_degree is None:
            return count_in_edges(edge_index, x.size(0))
        return in_degree


def count_in_edges(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Count each node's in-edges, self loops left out.

    Args:
        edge_index: Long tensor of shape ``(2, E)``, source above destination.
        num_nodes: Number of nodes ``N``.

    Returns:
        Long tensor of shape ``(N,)``.

    Examples:
        >>> count_in_edges(torch.tensor([[0, 1, 2, 1], [1, 1, 1, 0]]), num_nodes=3)
        tensor([1, 2, 0])
    """
    source, target = edge_index
    counts = torch.zeros(num_nodes, dtype=torch.long, device=edge_index.device)
    return counts.scatter_add_(0, target, (source != target).long())


def check_hops(
    num_layers: int,
    num_sampled_nodes_per_hop: Sequence[int],
    num_sampled_edges_per_hop: Sequence[int],
    x: Tensor,
    edge_index: Tensor,
) -> None:
    """Refuse per-hop counts that are too few for `num_layers` or that do not describe this batch.

    Args:
        num_layers: Number of layers of the net.
        num_sampled_nodes_per_hop: ``[seeds, hop 1, ...]``.
        num_sampled_edges_per_hop: ``[hop 1, ...]``.
        x: Node features of shape ``(N, F)``.
        edge_index: Long tensor of shape ``(2, E)``.

    Raises:
        ValueError: If there are fewer hops than layers, or the counts do not sum to ``N`` and ``E``.
    """
    hops = len(num_sampled_edges_per_hop)
    if hops < num_layers:
        raise ValueError(
            f"`num_layers` must not exceed the number of sampled hops, but the net has {num_layers} layers and the"
            f" batch has {hops} hops. HINT: give the sampler one fan-out per layer, or build a shallower net."
        )
    counts = {
        "num_sampled_nodes_per_hop": (sum(num_sampled_nodes_per_hop), x.size(0), "nodes"),
        "num_sampled_edges_per_hop": (sum(num_sampled_edges_per_hop), edge_index.size(1), "edges"),
    }
    for name, (counted, found, what) in counts.items():
        if counted != found:
            raise ValueError(
                f"`{name}` must sum to the {found:,} {what} of the batch, but sums to {counted:,}. HINT: whatever adds"
                " or removes nodes or edges after sampling must keep the counts up to date, or drop them."
            )
