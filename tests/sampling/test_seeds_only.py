from __future__ import annotations

import numpy as np
import pytest

from lightning_gnnopt.sampling import SampleKey, SeedsOnlySampler, Topology, topology

from .reference import random_graph


@pytest.mark.parametrize("wide", [False, True])
def test_a_batch_is_its_seeds(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_INT32_MAX", 0 if wide else 2**31 - 1)
    sampler = SeedsOnlySampler(Topology.from_edge_index(random_graph(10, 50), 10))
    batch = sampler.sample(np.array([4, 1, 4]), SampleKey(0))
    assert sampler.num_hops == 0
    assert batch.n_id.tolist() == [4, 1, 4]
    assert batch.n_id.dtype == (np.int64 if wide else np.int32)
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([3], [])
    assert (batch.batch_size, batch.num_nodes, batch.num_edges) == (3, 3, 0)
    assert batch.row.size == batch.col.size == batch.positions.size == 0
