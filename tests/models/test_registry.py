from __future__ import annotations

import pytest

from lightning_gnnopt.models import GAT, GCN, GGNN, MODELS, GaAN, GraphSAGE, build_model
from lightning_gnnopt.models.registry import model_options


def test_models_by_name() -> None:
    assert list(MODELS.items()) == [("gcn", GCN), ("sage", GraphSAGE), ("gat", GAT), ("ggnn", GGNN), ("gaan", GaAN)]
    assert [name for name, cls in MODELS.items() if cls.needs_in_degree] == ["gcn"]


@pytest.mark.parametrize("name", MODELS)
def test_build_model_passes_its_options_on(name: str) -> None:
    net = build_model(name, in_channels=5, hidden_channels=16, out_channels=3, num_layers=4, dropout=0.25)
    assert type(net) is MODELS[name]
    assert (net.in_channels, net.hidden_channels, net.out_channels) == (5, 16, 3)
    assert (net.num_layers, len(net.convs), net.dropout) == (4, 4, 0.25)


def test_options_of_a_model() -> None:
    assert {"heads", "attention_dropout"} < set(model_options("gat"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gatt", {}, "Unknown model 'gatt'. Did you mean 'gat'? Known: gaan, gat, gcn, ggnn, sage."),
        (
            "sage",
            {"head": 3},
            "Unknown option of `sage` 'head'."
            " Known: dropout, hidden_channels, in_channels, norm, num_layers, out_channels.",
        ),
        (
            "sage",
            {"hidden_channels": 6, "in_channels": 5},
            "`out_channels` is needed to build `sage`, but was not given. HINT: `data.num_features` and the number"
            " of classes are what `in_channels` and `out_channels` stand for.",
        ),
    ],
)
def test_bad_requests_are_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=r"Unknown|needed") as error:
        build_model(name, **options)
    assert str(error.value) == message


def test_the_nearest_option_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"Unknown option of `gat` 'head'\. Did you mean 'heads'\?"):
        build_model("gat", in_channels=5, hidden_channels=16, out_channels=3, head=4)
