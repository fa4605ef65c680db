"""Whether all ranks have the same edges and weights, told from a few numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_gnnopt.parallel.channel import Channel

_INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def refuse_different(channel: Channel, name: str, edge_index: Tensor, parameters: Iterable[Tensor]) -> None:
    """Refuse edges or weights that are not the same on all ranks; on all ranks.

    Args:
        channel: Connects the ranks.
        name: Whose edges and weights they are.
        edge_index: Long, shape ``(2, E)``.
        parameters: The weights.

    Raises:
        ValueError: If they differ.
    """
    place = torch.arange(1, edge_index.size(1) + 1, device=edge_index.device)
    edges = ((edge_index[0] * 3 + edge_index[1] * 5 + 1) * place).sum()
    weights = torch.zeros((), dtype=torch.int64, device=edge_index.device)
    for k, parameter in enumerate(parameters, 1):
        bits = parameter.detach().contiguous().view(_INTS[parameter.element_size()])
        weights = weights + k * bits.sum(dtype=torch.int64).to(weights.device)
    mine = torch.stack([edges, weights]).remainder(2**20)  # small enough for squares
    sums, squares = channel.sum(torch.stack([mine, mine * mine]))
    for what, is_same in zip(("edge_index", "weights"), (channel.size * squares == sums * sums).tolist(), strict=True):
        if not is_same:
            raise ValueError(
                f"All processes must have the same {what} in {name} to divide its edges, but they differ. HINT: give"
                " all of them the whole graph, `use_distributed_sampler=False` to a Trainer, and the same weights."
            )
