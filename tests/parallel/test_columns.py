"""Columns of all nodes in the place of rows of some: exact, with bytes that do not depend on the halo."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from lightning_gnnopt.parallel import BNS, Columns
from lightning_gnnopt.parallel.columns import COLUMNWISE
from lightning_gnnopt.parallel.policies import Policies
from tests.parallel.ranks import graph, on_parts, on_whole, parts_of
from tests.parallel.test_exact import CONVS, F, N, Net, assert_same, owners, weighted


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize(("kind", "num_parts"), [("random", 3), ("one-has-all", 3), ("random", 7)])
def test_gradients_are_exact(conv: str, kind: str, num_parts: int) -> None:
    """Of all convolutions, those that fetch their halo as well; with more parts than some layers have columns."""
    torch.manual_seed(0)
    net, edge_index = Net(CONVS[conv], pyg.GraphNorm(8)).double(), graph(N)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    got = on_parts(net, x, parts_of(edge_index, owners(kind, num_parts), num_parts), loss, policy=Columns())
    assert_same(got, on_whole(net, x, edge_index, loss), 1e-10)


class Weighted(nn.Module):
    """Weighs an edge by its target's first feature, and in the second layer by a factor, which may be learned."""

    def __init__(self, *, is_learned: bool) -> None:
        super().__init__()
        self.first, self.last = pyg.GraphConv(F, 8), pyg.GraphConv(8, 8, aggr="max")
        self.factor = nn.Parameter(torch.tensor(0.5), requires_grad=is_learned)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        weight = x.detach()[edge_index[1], 0].sigmoid()
        x = self.first(x, edge_index, weight).tanh()
        return self.last(x, edge_index, weight * self.factor)  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_learned", [False, True])
def test_weights_of_edges_go_with_them(is_learned: bool) -> None:
    torch.manual_seed(0)
    net, parts = Weighted(is_learned=is_learned).double(), parts_of(graph(N), owners("random", 3), 3)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    assert_same(on_parts(net, x, parts, loss, policy=Columns()), on_whole(net, x, graph(N), loss), 1e-10)


def test_what_travels_depends_on_nodes_only() -> None:
    """Eight columns, to columns and back, forward and backward: each node's row, but for the rank's own share."""
    torch.manual_seed(0)
    net, parts = pyg.SAGEConv(8, 8).double(), parts_of(graph(N), owners("random", 2), 2)
    x, loss = torch.randn(N, 8, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    for part, traffic in zip(parts, on_parts(net, x, parts, loss, policy="columns").traffic, strict=True):
        others = N - part.num_inner
        assert traffic.by_kind["forward"] - 8 * part.send_counts[1 - part.rank] == 8 * 4 * (part.num_inner + others)
        assert traffic.by_kind["backward"] == 8 * 4 * (part.num_inner + others)
        assert traffic.by_kind["edges"] == 16 * len(part.edge_id)


def test_it_goes_with_no_other_policy() -> None:
    assert Policies.of(["exact", "columns"]).columns == Columns()
    with pytest.raises(ValueError, match="`Columns` cannot be combined"):
        Policies.of(["columns", BNS(0.1)])
    assert pyg.GATConv not in COLUMNWISE
