from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from .graphs import features, random_graph, small_net


def gru(cell: torch.nn.GRUCell, message: Tensor, state: Tensor) -> Tensor:
    """The gates written out, in torch's order: reset, update, new."""
    in_r, in_z, in_n = (cell.weight_ih @ message + cell.bias_ih).chunk(3)
    st_r, st_z, st_n = (cell.weight_hh @ state + cell.bias_hh).chunk(3)
    reset, update = torch.sigmoid(in_r + st_r), torch.sigmoid(in_z + st_z)
    return (1 - update) * torch.tanh(in_n + reset * st_n) + update * state


def test_equals_loops_over_nodes() -> None:
    edge_index, x = random_graph(10, 25), features(10, 5)
    net = small_net("ggnn", 3)

    state = x @ net.lin_in.weight.t() + net.lin_in.bias
    for conv in net.convs:
        new = []
        for node in range(10):
            message = torch.zeros(6, dtype=x.dtype)
            for source, target in edge_index.t().tolist():
                if target == node:
                    message = message + state[source] @ conv.weight[0]
            new.append(gru(conv.rnn, message, state[node]))
        state = torch.stack(new)

    assert_close(net(x, edge_index), state @ net.lin_out.weight.t() + net.lin_out.bias)
