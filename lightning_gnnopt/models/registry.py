"""The networks by name."""

from __future__ import annotations

import inspect
from typing import Any

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.models.base import SampledGNN
from lightning_gnnopt.models.gaan import GaAN
from lightning_gnnopt.models.gat import GAT
from lightning_gnnopt.models.gcn import GCN
from lightning_gnnopt.models.ggnn import GGNN
from lightning_gnnopt.models.sage import GraphSAGE

MODELS: dict[str, type[SampledGNN]] = {"gcn": GCN, "sage": GraphSAGE, "gat": GAT, "ggnn": GGNN, "gaan": GaAN}


def model_options(name: str) -> list[str]:
    """List the arguments a network takes.

    Args:
        name: A key of `MODELS`.

    Returns:
        The argument names in the constructor's order.

    Raises:
        ValueError: If `name` is unknown.

    Examples:
        >>> model_options("sage")
        ['in_channels', 'hidden_channels', 'out_channels', 'num_layers', 'dropout', 'norm']
    """
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    return list(inspect.signature(MODELS[name]).parameters)


def build_model(name: str, **options: Any) -> SampledGNN:
    """Build a network by name.

    Args:
        name: A key of `MODELS`.
        **options: The network's own arguments, see :func:`model_options`.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: If `name` or an option is unknown, a needed one is missing, or the network refuses a value.

    Examples:
        >>> build_model("gat", in_channels=8, hidden_channels=64, out_channels=3, heads=4).num_layers
        2
    """
    known = model_options(name)
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f"option of `{name}`", option, known))
    missing = [key for key in ("in_channels", "hidden_channels", "out_channels") if options.get(key) is None]
    if missing:
        raise ValueError(
            f"`{missing[0]}` is needed to build `{name}`, but was not given."
            " HINT: `data.num_features` and the number of classes are what `in_channels` and `out_channels` stand for."
        )
    return MODELS[name](**options)
