"""Bytes that are predicted from a cut graph and a model, against those that are counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from torch_geometric.data import Data

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.parallel import (
    BNS,
    SAR,
    PartData,
    PartitionInfo,
    PartitionReport,
    Quantized,
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
from tests.parallel.ranks import graph

N, F, C = 90, 6, 3


def make_data() -> Data:
    torch.manual_seed(0)
    data = Data(x=torch.randn(N, F), edge_index=graph(N, 500), y=torch.randint(C, (N,)))
    data.train_mask = torch.arange(N) % 2 == 0
    return data


def counted(module: NodeClassifier, folder: Path, num_parts: int, policy: Any) -> list[int]:
    """Bytes that each rank sends in the second step of a run."""

    def work(channel: ThreadChannel) -> int:
        batch, model = PartData.of(*load_part(folder, channel.rank)), copy.deepcopy(module)
        model.log = model.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        installed = Installed(model)
        current = CurrentPart(batch.plan, channel, N, policies=Policies.of(policy))
        for step in range(2):
            channel.traffic = Traffic()
            current.start(step, training=True)
            with computing_on(current):
                loss_of_step(model, batch).backward()
        installed.remove()
        return channel.traffic.bytes_sent

    return run_ranks(num_parts, work)


@pytest.mark.parametrize(
    "policy",
    ["exact", SAR(), BNS(0.3), BNS(lambda step: 0.1 + 0.2 * step), Quantized(2), "stale", [BNS(0.3), Quantized(8)]],
    ids=["exact", "sar", "bns", "bns-by-step", "quantized", "stale", "both"],
)
@pytest.mark.parametrize("net", ["sage", "gcn", "gat", "ggnn"])
@pytest.mark.parametrize("num_parts", [2, 3])
def test_what_is_predicted_is_what_is_counted(tmp_path: Path, net: str, num_parts: int, policy: Any) -> None:
    info = partition_graph(make_data(), num_parts, folder=tmp_path / "parts", method="random")
    module = NodeClassifier(net, in_channels=F, out_channels=C, hidden_channels=8, num_layers=3)
    found = find_exchanges(module, PartData.of(*load_part(tmp_path / "parts", 0)), policy)
    predicted = predict_bytes(info, found, policy, step=1)
    assert predicted == counted(module, tmp_path / "parts", num_parts, policy)
    assert min(predicted) > 0
    assert {each.kind for each in found} == {"forward", "backward"}


def report() -> PartitionReport:
    parts = tuple(
        {"inner": inner, "halo": halo, "edges": edges, "send_counts": [0, 5], "recv_counts": [4, 0]}
        for inner, halo, edges in [(30, 4, 100), (10, 6, 60)]
    )
    info = PartitionInfo("id", 2, 40, 160, {"method": "metis"}, parts, {}, {"train_mask": (7, 8)})
    return PartitionReport(info, {"exact": [2048, 1024]})


def test_a_report_tells_sizes_and_balance() -> None:
    made = report()
    assert (made.node_balance, made.edge_balance, made.halo_share) == (1.5, 1.25, 0.25)
    frame = made.to_frame()
    assert frame.columns.tolist() == ["part", "nodes", "edges", "halo", "sent_rows", "train", "exact_bytes"]
    assert frame["exact_bytes"].tolist() == [2048, 1024]
    assert frame["train"].tolist() == [7, 8]


def test_a_report_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rich.print(report())
    shown = capsys.readouterr().out
    for text in ("40 nodes and 160 edges (method metis)", "1.50 in nodes, 1.25 in edges", "2.0 KiB", "3.0 KiB"):
        assert text in shown
