from __future__ import annotations

import re

import pytest

from lightning_gnnopt.sampling import SAMPLERS, NeighborSampler, resolve_sampler

from .reference import star


def test_a_name_stands_for_a_class() -> None:
    assert resolve_sampler("neighbor") is SAMPLERS["neighbor"] is NeighborSampler
    assert resolve_sampler("neighbor")(star(3), num_neighbors=[2]).num_hops == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neigbor", "Unknown sampler 'neigbor'. Did you mean 'neighbor'? Known: neighbor."),
        ("x", "Unknown sampler 'x'. Known: neighbor."),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        resolve_sampler(name)
