"""What a full graph over several parts sends, keeps and learns, by policy: bytes and losses, not seconds.

The parts are ranks in threads of one process, which exchange the same rows as processes would. Each policy trains the
same weights on the same graph; what a step sends is counted, and compared with what the cut graph and the model said
beforehand; what autograd keeps is counted by its own hooks.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from benchmarks.harness import Cell, Figure, Measured, run_benchmark
from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.parallel import (
    BNS,
    SAR,
    PartData,
    PartitionInfo,
    Quantized,
    Stale,
    find_exchanges,
    load_part,
    partition_graph,
    predict_bytes,
)
from lightning_gnnopt.parallel.channel import Traffic
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.policies import Policies
from lightning_gnnopt.parallel.probe import loss_of_step
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from lightning_gnnopt.studies.quiet import quiet

POLICIES: Mapping[str, Any] = {
    "exact": "exact",
    "SAR(0)": SAR(0),
    "SAR(1)": SAR(1),
    "BNS(0.1)": BNS(0.1),
    "Quantized(8)": Quantized(8),
    "Quantized(2)": Quantized(2),
    "BNS(0.1), Quantized(8)": [BNS(0.1), Quantized(8)],
    "Stale(1)": Stale(1),
}
SAME_LOSS = 1e-3  # of float32 after many steps of Adam, whose sums are in another order
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a policy came to.

    Attributes:
        sent: Bytes that each rank sends in the second step.
        saved: Bytes that autograd keeps on each rank for the backward pass.
        live_rows: Rows of the halo that are there at once, at most, where they come one rank after the other.
        losses: The loss of each epoch.
        accuracy: On the test nodes, at the end.
    """

    sent: list[int]
    saved: list[int]
    live_rows: int
    losses: list[float]
    accuracy: float


def measure(quick: bool) -> Measured:
    """Train a model of each kind with each policy.

    Args:
        quick: Whether to take a small synthetic graph and few epochs.
    """
    data, epochs = _load(quick)
    rows: list[Mapping[str, Cell]] = []
    figures: list[Figure] = []
    for net in ("sage", "gat"):
        module = NodeClassifier(
            net,
            in_channels=data.num_features,
            out_channels=int(data.y.max()) + 1,
            hidden_channels=64,
            dropout=0.0,
            optimizer={"name": "Adam", "lr": 0.01},
        )
        whole = None
        for num_parts in (1, 2, 4):
            with tempfile.TemporaryDirectory() as temporary, quiet():
                folder = Path(temporary) / "parts"
                info = partition_graph(data, num_parts, folder=folder)
                runs = {
                    name: train(module, folder, num_parts, policy, epochs=epochs)
                    for name, policy in POLICIES.items()
                    if num_parts > 1 or name in ("exact", "SAR(0)")
                }
                predicted = {name: _predicted(module, folder, info, POLICIES[name]) for name in runs}
            whole = whole or runs["exact"]
            rows += [_row(net, num_parts, name, run, predicted[name]) for name, run in runs.items()]
            if num_parts > 1:
                figures += _figures(f"{net}, {num_parts} parts", runs, whole, predicted)
    return figures, rows


def train(module: NodeClassifier, folder: Path, num_parts: int, policy: Any, *, epochs: int) -> Run:
    """Train on all parts, in threads.

    Args:
        module: Where to start; it is copied.
        folder: The cut graph.
        num_parts: Number of parts.
        policy: As for a `GraphParallelStrategy`.
        epochs: Number of steps, each on the whole graph.
    """

    def work(channel: ThreadChannel) -> tuple[Any, ...]:
        batch, model = PartData.of(*load_part(folder, channel.rank)), copy.deepcopy(module)
        model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        installed = Installed(model)
        part = CurrentPart(batch.plan, channel, batch.num_graph_nodes, policies=Policies.of(policy))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        own = batch.num_targets("train")
        total = int(channel.sum(torch.tensor([own])))
        sent, losses, kept = 0, [], 0
        for step in range(epochs):
            channel.traffic = Traffic()
            part.start(step, training=True)
            with computing_on(part):
                loss, kept = _forward(model, batch)
                weighed = loss * (own / total)
                optimizer.zero_grad()
                weighed.backward()  # type: ignore[no-untyped-call]
            for parameter in model.parameters():
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = channel.sum(grad)
            optimizer.step()
            losses.append(float(channel.sum(weighed.detach())))
            sent = channel.traffic.bytes_sent if step == 1 else sent
        part.start(epochs, training=False)
        with computing_on(part), torch.no_grad():
            right = (model.eval().net(batch.x, batch.edge_index).argmax(1) == batch.y)[batch.test_mask]
        counts = channel.sum(torch.tensor([int(right.sum()), len(right)])).tolist()
        installed.remove()
        return sent, kept, part.most_live_rows, losses, counts[0] / counts[1]

    found = run_ranks(num_parts, work, timeout_s=600.0)
    return Run(
        sent=[each[0] for each in found],
        saved=[each[1] for each in found],
        live_rows=max(each[2] for each in found),
        losses=found[0][3],
        accuracy=found[0][4],
    )


def _forward(model: NodeClassifier, batch: PartData) -> tuple[Tensor, int]:
    """Run a step, and count what autograd keeps: each storage once, without parameters and the part itself."""
    given = {value.untyped_storage()._cdata for value in batch.to_dict().values() if isinstance(value, Tensor)}
    given |= {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in given:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of_step(model, batch)
    return loss, sum(kept.values())


def _load(quick: bool) -> tuple[Data, int]:
    if quick:
        return load_dataset("dcsbm", num_nodes=600, num_classes=4, avg_degree=10.0), 10
    return load_dataset("amazon-computers", root=os.environ.get("GNNOPT_DATA")), 20


def _predicted(module: NodeClassifier, folder: Path, info: PartitionInfo, policy: Any) -> list[int]:
    exchanges = find_exchanges(module, PartData.of(*load_part(folder, 0)), policy)
    return predict_bytes(info, exchanges, policy, step=1)


def _row(net: str, num_parts: int, policy: str, run: Run, predicted: Sequence[int]) -> Mapping[str, Cell]:
    middle = len(run.losses) // 2
    return {
        "model": net,
        "parts": num_parts,
        "policy": policy,
        "sent MiB": round(sum(run.sent) / MIB, 3),
        "predicted MiB": round(sum(predicted) / MIB, 3),
        "kept MiB, most": round(max(run.saved) / MIB, 2),
        "live rows": run.live_rows or None,
        "loss 1": round(run.losses[0], 4),
        f"loss {middle}": round(run.losses[middle - 1], 4),
        f"loss {len(run.losses)}": round(run.losses[-1], 4),
        "test acc": round(run.accuracy, 4),
    }


def _figures(setting: str, runs: Mapping[str, Run], whole: Run, predicted: Mapping[str, Sequence[int]]) -> list[Figure]:
    right = [sent == said for name, run in runs.items() for sent, said in zip(run.sent, predicted[name], strict=True)]
    off = [
        abs(loss - other) / other
        for name in ("exact", "SAR(0)", "SAR(1)")
        for loss, other in zip(runs[name].losses, whole.losses, strict=True)
    ]
    exact, bns, sar = (runs[name] for name in ("exact", "BNS(0.1)", "SAR(0)"))
    return [
        Figure(
            name=f"ranks whose bytes were predicted, {setting}",
            value=sum(right) / len(right),
            unit="share",
            reach=1.0,
            sense=">=",
        ),
        Figure(
            name=f"largest difference of an exact loss, {setting}",
            value=max(off),
            unit="share",
            reach=SAME_LOSS,
            sense="<=",
        ),
        Figure(name=f"bytes of BNS(0.1) over exact ones, {setting}", value=sum(bns.sent) / sum(exact.sent), unit="x"),
        Figure(name=f"kept bytes of SAR over exact ones, {setting}", value=max(sar.saved) / max(exact.saved), unit="x"),
    ]


def main() -> int:
    """Run the benchmark."""
    return run_benchmark("parallel", measure, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
