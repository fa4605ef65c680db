"""Four strategies for a first layer: the same outputs and gradients, and as many bytes as predicted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv

from lightning_gnnopt.parallel.block import Block
from lightning_gnnopt.parallel.channel import Traffic
from lightning_gnnopt.parallel.first_layer import STRATEGIES, FirstLayer
from lightning_gnnopt.parallel.first_layer_plan import cheapest, predicted_bytes
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks

N = 50
BARS = {torch.float64: 1e-10, torch.float32: 1e-5}


def random_block(num_sources: int, num_targets: int, num_edges: int, *, seed: int, weights: str = "none") -> Block:
    """Some nodes of the graph, of which the targets are the first, as a sampler gives them; parallel edges too."""
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randperm(N, generator=generator)[:num_sources]
    source = torch.randint(max(1, num_sources), (num_edges,), generator=generator)
    target = torch.randint(max(1, num_targets), (num_edges,), generator=generator)
    block = Block(nodes, nodes[:num_targets], torch.stack([source, target]))
    return block.averaged(torch.float64) if weights == "mean" else block


def blocks_of(kind: str, num_ranks: int, weights: str = "none") -> list[Block]:
    """Blocks of different sizes; with "one-only", all but the last are empty."""
    sizes = [(30, 12, 90), (20, 7, 25), (25, 25, 40)][:num_ranks]
    if kind == "one-only":
        sizes = [(0, 0, 0)] * (num_ranks - 1) + [(30, 12, 90)]
    return [random_block(*each, seed=rank, weights=weights) for rank, each in enumerate(sizes)]


def owners(kind: str, num_ranks: int) -> Tensor:
    if kind == "skewed":  # nearly all are one's
        return (torch.arange(N) % 10 == 0).long() * (num_ranks - 1)
    return torch.randint(num_ranks, (N,), generator=torch.Generator().manual_seed(9))


def whole(x: Tensor, block: Block) -> Tensor:
    """``A X``, with a dense matrix."""
    matrix = x.new_zeros(len(block.targets), len(x))
    weights = torch.ones(block.edge_index.size(1)) if block.edge_weight is None else block.edge_weight
    for (source, target), weight in zip(block.edge_index.T.tolist(), weights.tolist(), strict=True):
        matrix[target, block.sources[source]] += weight
    return matrix @ x


def loss_of(out: Tensor, rank: int) -> Tensor:
    factors = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return (out.relu() * factors).sum() + out.square().sum() * 0.1 * (rank + 1)


def on_ranks(
    x: Tensor, weight: Tensor, blocks: list[Block], owner: Tensor, strategy: str
) -> list[tuple[Tensor, Tensor, Tensor, Traffic]]:
    def work(channel: ThreadChannel) -> tuple[Tensor, Tensor, Tensor, Traffic]:
        columns = x[:, FirstLayer.columns_of(channel.rank, x.size(1), channel.size)]
        given = {"columns": columns} if strategy == "nfp" else {"rows": x[owner == channel.rank]}
        layer, mine = FirstLayer(channel, owner, **given), weight.clone().requires_grad_()
        out = layer.aggregate(blocks[channel.rank], mine, strategy=strategy)
        loss = loss_of(out, channel.rank)
        torch.autograd.backward(loss)
        assert mine.grad is not None
        return out.detach(), loss.detach(), mine.grad, channel.traffic

    return run_ranks(len(blocks), work, timeout_s=30.0)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["random", "skewed", "one-only"])
@pytest.mark.parametrize("weights", ["none", "mean"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_strategies_give_what_one_process_gives(
    strategy: str, weights: str, kind: str, num_ranks: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(N, 7, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    blocks, owner = blocks_of(kind, num_ranks, weights), owners(kind, num_ranks)
    expected_weight = weight.clone().requires_grad_()
    outs = [whole(x, block) @ expected_weight for block in blocks]
    losses = [loss_of(out, rank) for rank, out in enumerate(outs)]
    torch.autograd.backward(torch.stack(losses).sum())
    got = on_ranks(x, weight, blocks, owner, strategy)
    for (out, loss, *_), expected, expected_loss in zip(got, outs, losses, strict=True):
        assert out.shape == expected.shape
        assert torch.allclose(out, expected, rtol=BARS[dtype], atol=BARS[dtype])
        assert torch.allclose(loss, expected_loss, rtol=BARS[dtype], atol=BARS[dtype])
    expected_grad = expected_weight.grad
    assert expected_grad is not None
    assert expected_grad.abs().max() > 1
    grad = torch.stack([grad for _, _, grad, _ in got]).sum(0)
    assert (grad - expected_grad).abs().max() <= BARS[dtype] * expected_grad.abs().max()
    if strategy == "nfp":  # a rank's gradient is of its own columns only
        for rank, (_, _, of_rank, _) in enumerate(got):
            columns = FirstLayer.columns_of(rank, 7, num_ranks)
            of_rank[columns] = 0
            assert not of_rank.any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sage_layer_on_a_block(strategy: str) -> None:
    torch.manual_seed(0)
    conv, x = SAGEConv(7, 5, root_weight=False, bias=False).double(), torch.randn(N, 7, dtype=torch.float64)
    blocks = blocks_of("random", 2, "mean")
    got = on_ranks(x, conv.lin_l.weight.detach().T, blocks, owners("random", 2), strategy)
    for (out, *_), block in zip(got, blocks, strict=True):
        expected = conv((x[block.sources], x[block.targets]), block.edge_index)
        assert torch.allclose(out, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("hidden", [3, 8])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["random", "skewed", "one-only"])
@pytest.mark.parametrize("weights", ["none", "mean"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_predicted_bytes_are_those_counted(strategy: str, weights: str, kind: str, num_ranks: int, hidden: int) -> None:
    blocks, owner = blocks_of(kind, num_ranks, weights), owners(kind, num_ranks)
    got = on_ranks(torch.randn(N, 6), torch.randn(6, hidden), blocks, owner, strategy)
    sizes = {"strategy": strategy, "num_features": 6, "hidden": hidden}
    predicted = predicted_bytes(blocks, owner, **sizes)  # type: ignore[arg-type]
    assert [traffic.bytes_sent for *_, traffic in got] == predicted
    without = predicted_bytes(blocks, owner, **sizes, training=False)  # type: ignore[arg-type]
    backward = [traffic.by_kind.get("backward", 0) for *_, traffic in got]
    assert [a - b for a, b in zip(predicted, without, strict=True)] == backward
    assert (sum(predicted) > 0) == (num_ranks > 1)


def test_bytes_by_hand() -> None:
    """Rank 0 has nodes 0 and 1. Its block sums nodes 1, 2 and 3 into node 0; that of rank 1, node 0 into nodes 2, 3."""
    owner = torch.tensor([0, 0, 1, 1])
    first = Block(torch.tensor([1, 2, 3]), torch.tensor([0]), torch.tensor([[0, 1, 2], [0, 0, 0]]))
    second = Block(torch.tensor([0]), torch.tensor([2, 3]), torch.tensor([[0, 0], [0, 1]]))

    def bytes_of(strategy: str) -> list[int]:
        return predicted_bytes([first, second], owner, strategy=strategy, num_features=10, hidden=3)

    assert bytes_of("gdp") == [8 + 2 * 8 + 40, 8 + 8 + 2 * 40]
    assert bytes_of("nfp") == [16 + 3 * 16 + 2 * 12 + 12, 16 + 2 * 16 + 12 + 2 * 12]
    assert bytes_of("snp") == [16 + 2 * 16 + 2 * 12 + 12, 16 + 2 * 16 + 12 + 2 * 12]
    assert bytes_of("dnp") == [16 + 8 + 2 * 8 + 40, 16 + 8 + 8 + 2 * 40]


def counted(num_features: int, hidden: int, among: tuple[str, ...]) -> str:
    """The strategy of which the rank that has sent most has sent least."""
    blocks, owner = blocks_of("random", 3), owners("random", 3)
    x, weight = torch.randn(N, num_features), torch.randn(num_features, hidden)
    most = {s: max(t.bytes_sent for *_, t in on_ranks(x, weight, blocks, owner, s)) for s in among}
    return min(most, key=most.__getitem__)


@pytest.mark.parametrize(
    ("num_features", "hidden", "among", "expected"),
    [
        (600, 8, ("gdp", "nfp"), "nfp"),
        (8, 600, ("gdp", "nfp"), "gdp"),
        (600, 8, STRATEGIES, "snp"),
        (8, 600, STRATEGIES, "gdp"),
    ],
)
def test_the_planner_picks_what_has_sent_least(
    num_features: int, hidden: int, among: tuple[str, ...], expected: str
) -> None:
    blocks, owner = blocks_of("random", 3), owners("random", 3)
    assert cheapest(blocks, owner, num_features=num_features, hidden=hidden, among=among) == expected
    assert counted(num_features, hidden, among) == expected


def test_where_targets_have_their_sources_it_is_best_to_go_there() -> None:
    """Three clusters, each one rank's; its block is of the next one's nodes."""
    owner = torch.arange(48) // 16
    local = torch.randint(16, (2, 100), generator=torch.Generator().manual_seed(0))
    nodes = [torch.arange(48)[owner == (rank + 1) % 3] for rank in range(3)]
    blocks = [Block(each, each, local) for each in nodes]
    assert cheapest(blocks, owner, num_features=600, hidden=8, among=("gdp", "nfp", "dnp")) == "dnp"


@pytest.mark.parametrize("kind", ["random", "skewed", "one-only"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_to_the_sources_owners_never_goes_more_than_to_all(kind: str, num_ranks: int) -> None:
    blocks, owner = blocks_of(kind, num_ranks), owners(kind, num_ranks)
    snp, nfp = (
        predicted_bytes(blocks, owner, strategy=strategy, num_features=6, hidden=8) for strategy in ("snp", "nfp")
    )
    assert all(few <= many for few, many in zip(snp, nfp, strict=True))
    assert sum(snp) < sum(nfp)


def layer(**given: Any) -> FirstLayer:
    return FirstLayer(ThreadChannel.connected(2)[0], torch.tensor([0, 1, 0, 1]), **given)


BLOCK = Block(torch.tensor([1]), torch.tensor([0]), torch.tensor([[0], [0]]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: layer().aggregate(BLOCK, torch.ones(6, 2), strategy="ndp"), "Unknown strategy 'ndp'"),
        (lambda: layer().aggregate(BLOCK, torch.ones(6, 2)), "The strategy 'gdp' needs `rows`. HINT: "),
        (
            lambda: layer(rows=torch.ones(2, 6)).aggregate(BLOCK, torch.ones(6, 2), strategy="nfp"),
            "The strategy 'nfp' needs `columns`",
        ),
        (lambda: layer(rows=torch.ones(3, 6)), "`rows` must have a row for each of 2 nodes, but has 3"),
        (lambda: layer(columns=torch.ones(3, 6)), "`columns` must have a row for each of 4 nodes, but has 3"),
        (lambda: layer(rows=nn.Parameter(torch.ones(2, 6))), "`rows` must not need a gradient"),
        (
            lambda: layer(columns=torch.ones(4, 6)).aggregate(BLOCK, torch.ones(6, 2), strategy="nfp"),
            "`columns` must have 3 columns of torch.float32 .*, but has 6 of torch.float32",
        ),
        (
            lambda: layer(rows=torch.ones(2, 6).double()).aggregate(BLOCK, torch.ones(6, 2)),
            "but has 6 of torch.float64",
        ),
        (
            lambda: layer(rows=torch.ones(2, 6)).aggregate(
                Block(BLOCK.sources, BLOCK.targets, BLOCK.edge_index, nn.Parameter(torch.ones(1))), torch.ones(6, 2)
            ),
            "`edge_weight` must not need a gradient",
        ),
        (
            lambda: Block(torch.tensor([7]), torch.tensor([7]), torch.tensor([[7], [0]])),
            "`edge_index` must hold places in the 1 `sources`, but goes from 7 to 7",
        ),
        (
            lambda: Block(BLOCK.sources, BLOCK.targets, BLOCK.edge_index, torch.ones(2)),
            r"a number for each of the 1 edges, but has the shape \(2,\)",
        ),
        (lambda: cheapest([BLOCK], torch.zeros(4).long(), num_features=1, hidden=1, among=()), "`among` must name"),
        (
            lambda: predicted_bytes([BLOCK], torch.zeros(4).long(), strategy="x", num_features=1, hidden=1),
            "Unknown strategy 'x'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
