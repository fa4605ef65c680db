from __future__ import annotations

import pytest
from torch.testing import assert_close

from lightning_gnnopt.models import GaAN

from .graphs import features, random_graph, small_net


def test_leaky_relu_stands_between_the_layers() -> None:
    edge_index, x = random_graph(10, 25), features(10, 5)
    net = small_net("gaan", 2)
    hidden = net.convs[0](x, edge_index)
    assert_close(net(x, edge_index), net.convs[1](hidden.where(hidden > 0, 0.1 * hidden), edge_index))


@pytest.mark.parametrize("name", ["heads", "key_channels", "value_channels", "gate_channels"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, but got 0."):
        GaAN(5, 6, 3, **{name: 0})
