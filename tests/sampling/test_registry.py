from __future__ import annotations

import re

import pytest

from lightning_gnnopt.sampling import SAMPLERS, NeighborSampler, NodeSampler, resolve_sampler

from .reference import star

KNOWN = "cluster, fastgcn, labor, ladies, neighbor, saint-edge, saint-node, saint-walk, shadow"


def test_a_name_stands_for_a_class() -> None:
    assert resolve_sampler("neighbor") is SAMPLERS["neighbor"] is NeighborSampler
    assert resolve_sampler("neighbor")(star(3), num_neighbors=[2]).num_hops == 1


def test_the_names_are_those_of_the_classes() -> None:
    for name, kind in SAMPLERS.items():
        assert issubclass(kind, NodeSampler)
        assert kind.__name__.lower() == f"{name.replace('-', '')}sampler"
    assert ", ".join(sorted(SAMPLERS)) == KNOWN


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neigbor", f"Unknown sampler 'neigbor'. Did you mean 'neighbor'? Known: {KNOWN}."),
        ("saint_walk", f"Unknown sampler 'saint_walk'. Did you mean 'saint-walk'? Known: {KNOWN}."),
        ("x", f"Unknown sampler 'x'. Known: {KNOWN}."),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resolve_sampler(name)
