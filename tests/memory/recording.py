"""Steps of PyG convolutions on random batches, and the allocations that the profiler saw in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._autograd import _disable_profiler_legacy, _enable_profiler_legacy
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig
from torch_geometric.utils import trim_to_layer

NAMES = ("nodes_0", "nodes_1", "nodes_2", "edges_1", "edges_2", "loops_1", "loops_2")
NUM_FEATURES, NUM_CLASSES = 20, 7


@dataclass
class HopBatch:
    """A batch of two hops: ``x`` of shape ``(N, 20)``, ``edge_index`` of shape ``(2, E)``."""

    x: Tensor
    y: Tensor
    edge_index: Tensor
    num_nodes: list[int]
    num_edges: list[int]

    @property
    def features(self) -> NDArray[np.float64]:
        loops = (self.edge_index[0] == self.edge_index[1]).long().split(self.num_edges)
        return np.array([*self.num_nodes, *self.num_edges, *(int(hop.sum()) for hop in loops)], np.float64)

    @property
    def padded(self) -> float:
        return float(len(self.x) * self.edge_index[1].bincount().max())


def random_batch(generator: np.random.Generator, low: int, high: int) -> HopBatch:
    """Draw hops of `low` to `high` nodes and up to 4 times as many edges, some of them self loops."""
    sizes = generator.integers(low, high, 3).tolist()
    ends = np.cumsum(sizes)
    edges, counts = [], []
    for hop in (1, 2):
        count = int(generator.integers(sizes[hop], 4 * high))
        col = np.sort(generator.integers(0 if hop == 1 else ends[0], ends[hop - 1], count))
        row = generator.integers(0, ends[hop], count)
        loops = generator.random(count) < generator.uniform(0.1, 0.4)
        edges.append(np.stack([np.where(loops, col, row), col]))
        counts.append(count)
    x = torch.from_numpy(generator.random((ends[2], NUM_FEATURES), np.float32))
    y = torch.from_numpy(generator.integers(0, NUM_CLASSES, sizes[0]))
    return HopBatch(x, y, torch.from_numpy(np.concatenate(edges, axis=1)), sizes, counts)


class Net(nn.Module):
    def __init__(self, convs: Sequence[nn.Module], *, trim: bool = False, mask: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.trim, self.mask = trim, mask

    def forward(self, batch: HopBatch) -> Tensor:
        x, edge_index = batch.x, batch.edge_index
        for layer, conv in enumerate(self.convs):
            if self.trim:
                x, edge_index, _ = trim_to_layer(layer, batch.num_nodes, batch.num_edges, x, edge_index)
            x = conv(x, edge_index)
            if layer == 0:
                x = x.relu()
                if self.mask:
                    x = x * x[x > 0.2].mean()
        return x[: batch.num_nodes[0]]


def training_step(net: nn.Module) -> Callable[[HopBatch], None]:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def step(batch: HopBatch) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch), batch.y).backward()
        optimizer.step()

    return step


def record(step: Callable[[HopBatch], None], batches: Sequence[HopBatch]) -> list[NDArray[np.int64]]:
    """Record a step on each batch; two more come first, so that optimizer state and gradients are there.

    Every step is run while the profiler runs: it does not know the size of a block allocated before.
    """
    streams = []
    config = ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig())
    for batch in (batches[0], batches[0], *batches):
        _enable_profiler_legacy(config)
        torch.autograd._enable_record_function(False)
        try:
            step(batch)
        finally:
            torch.autograd._enable_record_function(True)
            events = [event for thread in _disable_profiler_legacy() for event in thread]
        sizes = [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]
        streams.append(np.array(sizes, np.int64))
    return streams[2:]


def peak_of(stream: NDArray[np.int64]) -> int:
    held = peak = 0
    for size in stream.tolist():
        held += size
        peak = max(peak, held)
    return peak
