"""Some of the halo: the same rows on both sides, without a word about them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gnnopt.parallel.halo import HaloPlan


def sample_plan(plan: HaloPlan, share: float, *, rank: int, key: tuple[int, int]) -> HaloPlan:
    """Draw a share of what each rank sends to each other one.

    Args:
        plan: All that is sent.
        share: From 0 to 1.
        rank: Whose plan it is.
        key: The same on all ranks: a seed and the number of the step.

    Returns:
        The plan of ``max(1, round(share * rows))`` rows for each pair of ranks (none if `share` is 0), which are scaled
        by the inverse of the share that was drawn. The plan itself if that is all of them.
    """
    if share >= 1:
        return plan
    sent = [_drawn(count, share, key, rank, other) for other, count in enumerate(plan.send_counts)]
    received = [_drawn(count, share, key, other, rank) for other, count in enumerate(plan.recv_counts)]
    device = plan.send_index.device
    scale = [
        torch.full((len(places),), count / max(1, len(places)))
        for places, count in zip(received, plan.recv_counts, strict=True)
    ]
    return HaloPlan(
        plan.num_inner,
        plan.num_halo,
        plan.send_index[_joined(sent, plan.send_counts).to(device)],
        tuple(map(len, sent)),
        tuple(map(len, received)),
        recv_index=_joined(received, plan.recv_counts).to(device),
        recv_scale=torch.cat(scale).to(device),
    )


def num_drawn(count: int, share: float) -> int:
    """How many of the rows that one rank sends another are drawn.

    Examples:
        >>> [num_drawn(count, 0.1) for count in (0, 4, 100)]
        [0, 1, 10]
    """
    return max(1, round(share * count)) if share > 0 and count else 0


def _drawn(count: int, share: float, key: tuple[int, int], sender: int, receiver: int) -> Tensor:
    """Places of what one rank sends another, ascending."""
    size = num_drawn(count, share)
    generator = torch.Generator()
    seed, step = key
    generator.manual_seed(hash((seed, step, sender, receiver)) & (2**63 - 1))  # of integers: the same everywhere
    return torch.randperm(count, generator=generator)[:size].sort().values


def _joined(places: list[Tensor], counts: tuple[int, ...]) -> Tensor:
    starts = [sum(counts[:rank]) for rank in range(len(counts))]
    return torch.cat([place + start for place, start in zip(places, starts, strict=True)])
