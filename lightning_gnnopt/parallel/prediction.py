"""How many bytes a training step will exchange, before there is a process to exchange them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import lightning as L
import torch

from lightning_gnnopt.parallel.channel import Traffic
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.part_data import PartData
from lightning_gnnopt.parallel.part_files import PartitionInfo
from lightning_gnnopt.parallel.policies import Policies, Policy
from lightning_gnnopt.parallel.probe import loss_of_step, tiny_graph, tiny_parts, twin_of
from lightning_gnnopt.parallel.quantization import packed_bytes
from lightning_gnnopt.parallel.sampled import num_drawn
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks


@dataclass(frozen=True)
class Exchange:
    """What a model exchanges once in each training step.

    Attributes:
        kind: ``"forward"``: rows go to those who need them; ``"backward"``: gradients come back.
        shape: Shape of a row.
        dtype: Its type.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def row_bytes(self, policies: Policies) -> int:
        """Bytes of a row on its way."""
        if policies.quantized is not None and self.dtype.is_floating_point:
            return packed_bytes(prod(self.shape), policies.quantized.bits)
        return self.dtype.itemsize * prod(self.shape)


def find_exchanges(
    module: L.LightningModule, batch: PartData, policy: str | Policy | Sequence[str | Policy] = "exact"
) -> list[Exchange]:
    """Find out what a model exchanges in a training step: by a step on two parts of a tiny graph.

    What is exchanged once in a run, such as degrees, is left out.

    Args:
        module: Whose ``training_step`` runs on a copy, in float32.
        batch: A part of the graph, of which some nodes are taken.
        policy: As for a `GraphParallelStrategy`.

    Raises:
        Exception: What the step raises, if it cannot run without a Trainer.
    """
    policies = Policies(sequential=Policies.of(policy).sequential)  # others change the rows, not the exchanges
    data, twin = tiny_graph(batch), twin_of(module).train()
    batches = tiny_parts(data, 2)

    def work(channel: ThreadChannel) -> Traffic:
        model, part = copy.deepcopy(twin), batches[channel.rank]
        installed = Installed(model)
        current = CurrentPart(part.plan, channel, int(data.num_nodes or 0), policies=policies)
        try:
            for step in range(2):  # what is exchanged once is kept after the first one
                channel.traffic = Traffic(log=[])
                current.start(step, training=True)
                with computing_on(current), torch.enable_grad():
                    loss_of_step(model, part).backward()  # type: ignore[no-untyped-call]
        finally:
            installed.remove()
        return channel.traffic

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        return [Exchange(*each) for each in run_ranks(2, work)[0].log or ()]


def predict_bytes(
    info: PartitionInfo,
    exchanges: Sequence[Exchange],
    policy: str | Policy | Sequence[str | Policy] = "exact",
    *,
    step: int = 0,
) -> list[int]:
    """Predict what each rank will send in a training step: bytes, exactly what `Traffic` then counts.

    Args:
        info: The cut graph.
        exchanges: What :func:`find_exchanges` found, with the same policy.
        policy: As for a `GraphParallelStrategy`.
        step: Number of the step, on which the share of :class:`BNS` may depend.

    Returns:
        Bytes by rank.

    Raises:
        ValueError: If the policy is :class:`Columns`.
    """
    policies = Policies.of(policy)
    if policies.columns is not None:
        raise ValueError("What `Columns` sends is not predicted. HINT: `strategy.channel.traffic` counts it.")
    share = 1.0 if policies.sampled is None else policies.sampled.share(step)

    def rows(counts: Sequence[int]) -> int:
        return sum(count if share >= 1 else num_drawn(count, share) for count in counts)

    return [
        sum(
            rows(part["send_counts" if each.kind == "forward" else "recv_counts"]) * each.row_bytes(policies)
            for each in exchanges
        )
        for part in info.parts
    ]
