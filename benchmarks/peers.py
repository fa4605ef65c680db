"""Other libraries' node-wise samplers, where they are installed: the same graph, seeds and fan-outs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from lightning_gnnopt.sampling import Topology

SampleFunction = Callable[[NDArray[Any], Sequence[int]], tuple[int, int]]
"""``(seeds, fan-outs) -> (nodes, edges)`` of one batch."""

PACKAGES = ("torch-sparse", "pyg-lib", "dgl")


def installed_peers(topology: Topology) -> tuple[dict[str, SampleFunction], dict[str, str]]:
    """Set up each peer that can be imported.

    Args:
        topology: The graph; peers get it with 64-bit ids, as they ask for.

    Returns:
        The samplers by package, and for each package that is missing the reason.
    """
    peers: dict[str, SampleFunction] = {}
    missing: dict[str, str] = {}
    for name, (module, make) in _MAKERS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a peer built for another torch fails in its own way
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        else:
            peers[name] = make(topology)
    return peers, missing


def _torch_sparse(topology: Topology) -> SampleFunction:
    colptr, row = torch.from_numpy(topology.indptr), torch.from_numpy(topology.indices).long()

    def sample(seeds: NDArray[Any], fanouts: Sequence[int]) -> tuple[int, int]:
        node, source, *_ = torch.ops.torch_sparse.neighbor_sample(
            colptr, row, torch.from_numpy(seeds), list(fanouts), False, True
        )
        return len(node), len(source)

    return sample


def _pyg_lib(topology: Topology) -> SampleFunction:
    colptr, row = torch.from_numpy(topology.indptr), torch.from_numpy(topology.indices).long()

    def sample(seeds: NDArray[Any], fanouts: Sequence[int]) -> tuple[int, int]:
        import pyg_lib

        source, _, node, *_ = pyg_lib.sampler.neighbor_sample(colptr, row, torch.from_numpy(seeds), list(fanouts))
        return len(node), len(source)

    return sample


def _dgl(topology: Topology) -> SampleFunction:
    import dgl

    dgl.utils.set_num_threads(1)  # as the others
    indptr, indices = torch.from_numpy(topology.indptr), torch.from_numpy(topology.indices).long()
    graph = dgl.graph(("csc", (indptr, indices, torch.empty(0, dtype=torch.long))), num_nodes=topology.num_nodes)

    def sample(seeds: NDArray[Any], fanouts: Sequence[int]) -> tuple[int, int]:
        sampler = dgl.dataloading.NeighborSampler(list(reversed(fanouts)))
        nodes, _, blocks = sampler.sample_blocks(graph, torch.from_numpy(seeds))
        return len(nodes), sum(block.num_edges() for block in blocks)

    return sample


_MAKERS: dict[str, tuple[str, Callable[[Topology], SampleFunction]]] = {
    "torch-sparse": ("torch_sparse", _torch_sparse),
    "pyg-lib": ("pyg_lib", _pyg_lib),
    "dgl": ("dgl", _dgl),
}
