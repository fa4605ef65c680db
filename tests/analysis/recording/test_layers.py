from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, HeteroConv, SAGEConv

from lightning_gnnopt.analysis.recording.layers import find_layers, normalizing_functions
from lightning_gnnopt.models import GAT, GCN, GGNN, GaAN, GraphSAGE
from lightning_gnnopt.models.gaan_conv import GaANConv


@pytest.mark.parametrize("network", [GCN, GAT, GGNN, GaAN, GraphSAGE])
def test_each_layer_of_our_networks_is_one(network: type[nn.Module]) -> None:
    layers, closed = find_layers(network(8, 8, 3, 3))
    assert [layer.name for layer in layers] == ["convs.0", "convs.1", "convs.2"]
    assert closed == {}


def test_message_passing_within_a_layer_is_part_of_it() -> None:
    conv = GaANConv(8, 3)
    layers, _ = find_layers(conv)
    assert [layer.name for layer in layers] == [""]
    assert layers[0].parts == (conv, conv.max_pool, conv.mean_pool)


def test_layers_of_several_types_have_a_name_each_and_shared_ones_the_first() -> None:
    shared = SAGEConv(4, 4)
    model = nn.Module()
    model.first = HeteroConv({("a", "to", "b"): GATConv(4, 4, add_self_loops=False), ("b", "to", "a"): shared})
    model.again = shared
    model.head = nn.Linear(4, 2)
    layers, closed = find_layers(model)
    assert [layer.name for layer in layers] == ["first.convs.<a___to___b>", "first.convs.<b___to___a>"]
    assert closed == {}


def test_what_is_compiled_or_scripted_is_closed() -> None:
    model = nn.Module()
    model.eager = GCNConv(4, 4)
    model.compiled = torch.compile(nn.Sequential(GCNConv(4, 4)))
    in_place = nn.Sequential(SAGEConv(4, 4))
    in_place.compile()
    model.in_place = in_place
    model.scripted = torch.jit.script(nn.Linear(4, 4))
    model.plain = torch.compile(nn.Linear(4, 4))  # nothing to look into
    layers, closed = find_layers(model)
    assert [layer.name for layer in layers] == ["eager"]
    assert closed == {
        "compiled": "compiled by torch.compile",
        "in_place": "compiled by torch.compile",
        "scripted": "a TorchScript module",
    }


def test_a_model_without_message_passing_has_no_layers() -> None:
    assert find_layers(nn.Sequential(nn.Linear(4, 4))) == ([], {})


def test_functions_that_weigh_edges_are_found_where_the_classes_look_them_up() -> None:
    found = {(module.__name__, name) for module, name in normalizing_functions(nn.Sequential(GCNConv(4, 4)))}
    assert ("torch_geometric.nn.conv.gcn_conv", "gcn_norm") in found
    ours = {(module.__name__, name) for module, name in normalizing_functions(GCN(4, 4, 2))}
    assert ("lightning_gnnopt.models.gcn", "symmetric_weights") in ours


def test_functions_that_a_compiled_module_uses_are_left_alone() -> None:
    model = nn.ModuleList([GCNConv(4, 4), GATConv(4, 4), torch.compile(GCNConv(4, 4))])
    modules = {module.__name__ for module, _ in normalizing_functions(model)}
    assert "torch_geometric.nn.conv.gat_conv" in modules
    assert "torch_geometric.nn.conv.gcn_conv" not in modules
