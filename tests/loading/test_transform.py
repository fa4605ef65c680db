from __future__ import annotations

from collections.abc import Callable

from lightning_gnnopt.loading import SubgraphTransform
from lightning_gnnopt.sampling import Subgraph


def test_any_callable_serves_and_nothing_else() -> None:
    def transform(subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        return subgraph

    assert isinstance(transform, SubgraphTransform)
    assert not isinstance("prune", SubgraphTransform)
