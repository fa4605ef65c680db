"""Which modules of a model are layers of message passing, and which of them can be looked into."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch_geometric.nn import MessagePassing


@dataclass(frozen=True)
class Layer:
    """A layer of message passing.

    Attributes:
        name: Its name in the model.
        module: The module.
        parts: The message passing modules whose edge computations are its own: itself, and those within it.
    """

    name: str
    module: MessagePassing
    parts: tuple[MessagePassing, ...]


def find_layers(model: nn.Module) -> tuple[list[Layer], dict[str, str]]:
    """Find the outermost message passing modules of a model.

    Args:
        model: The model.

    Returns:
        The layers, and what cannot be looked into: the reason by the module's name (``""`` is the model itself).
    """
    layers: list[Layer] = []
    closed: dict[str, str] = {}
    _search(model, "", layers, closed, set())
    return layers, closed


def _search(module: nn.Module, name: str, layers: list[Layer], closed: dict[str, str], seen: set[int]) -> None:
    if id(module) in seen:  # shared: it counts under its first name
        return
    seen.add(id(module))
    reason = _closed(module)
    if reason is not None:
        inner = [child for child in module.modules() if isinstance(child, MessagePassing)]
        seen.update(id(child) for child in module.modules())
        if inner or isinstance(module, torch.jit.ScriptModule):
            closed[name] = reason
        return
    if isinstance(module, MessagePassing):
        parts = tuple(child for child in module.modules() if isinstance(child, MessagePassing))
        seen.update(id(child) for child in module.modules())
        layers.append(Layer(name, module, parts))
        return
    for child_name, child in module.named_children():
        _search(child, f"{name}.{child_name}" if name else child_name, layers, closed, seen)


def _closed(module: nn.Module) -> str | None:
    if isinstance(module, torch._dynamo.OptimizedModule) or getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled by torch.compile"
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module"
    if getattr(module, "_compiler_ctx", None) is not None:  # a LightningModule that `torch.compile` was called on
        return "compiled by torch.compile"
    return None


_NORMALIZING = (
    "add_remaining_self_loops",
    "add_self_loops",
    "count_in_edges",
    "degree",
    "gcn_norm",
    "get_laplacian",
    "remove_self_loops",
    "symmetric_weights",
    "weights_of_mean",
)
"""Functions that compute something for the edges before message passing begins: PyG's, and this package's."""


def normalizing_functions(model: nn.Module) -> list[tuple[ModuleType, str]]:
    """Find where the classes of a model's modules take the functions from that weigh their edges.

    Where a compiled module takes its functions from, nothing is found: it would be compiled anew if one were replaced.

    Returns:
        Modules of Python, each with a name in it.
    """
    names, closed = set[str](), set[str]()
    _python_modules(model, names, closed)
    python_modules = [sys.modules[name] for name in sorted(names - closed) if name in sys.modules]
    found = [module for module in python_modules if not module.__name__.startswith("torch.")]
    return [(module, name) for module in found for name in _NORMALIZING if callable(getattr(module, name, None))]


def _python_modules(module: nn.Module, names: set[str], closed: set[str]) -> None:
    if _closed(module) is not None:
        closed.update(cls.__module__ for child in module.modules() for cls in type(child).__mro__)
        return
    names.update(cls.__module__ for cls in type(module).__mro__)
    for child in module.children():
        _python_modules(child, names, closed)


def is_written_by_pyg(method: Any) -> bool:
    """Whether a `propagate` is PyG's, or made by it from its template, so that it calls PyG's hooks."""
    module = str(method.__module__)
    return module == MessagePassing.__module__ or module.endswith("_propagate")
