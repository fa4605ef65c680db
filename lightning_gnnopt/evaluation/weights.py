"""What decides a module's outputs: read from it, and put into another one."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

_COMPILED = "_orig_mod"  # the name that `torch.compile` puts between a module and its parameters


def weights_of(module: nn.Module, *, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect what decides a module's outputs; nothing is copied.

    Args:
        module: Any module; modules below it may be compiled.
        saved: What a checkpoint has of its state dict, if that is to be judged: averages of weights, say.

    Returns:
        ``"state_dict"``: the module's, with names as if nothing were compiled. ``"buffers"``: the buffers that a
        state dict leaves out (``register_buffer(..., persistent=False)``), by name.
    """
    state = module.state_dict()
    for name in state.keys() & (saved or {}).keys():
        state[name] = saved[name]  # type: ignore[index]
    if any(_COMPILED in name for name in state):
        renamed = OrderedDict((_plain_name(name), value) for name, value in state.items())
        metadata = getattr(state, "_metadata", None)  # the versions of the modules, which loading looks at
        if metadata is not None:
            plain = OrderedDict((_plain_name(name), value) for name, value in metadata.items())
            renamed.__dict__["_metadata"] = plain
        state = renamed
    buffers = {
        _plain_name(f"{prefix}.{name}" if prefix else name): child._buffers[name]
        for prefix, child in module.named_modules()
        for name in sorted(child._non_persistent_buffers_set)
        if child._buffers.get(name) is not None
    }
    return {"state_dict": state, "buffers": buffers}


def read_weights(path: Path) -> Any:
    """Read a file of weights that this run has written, or one that it resumes.

    It is read as tensors alone if it holds nothing else. Modules may have states of their own classes
    (`get_extra_state`), which Python has to unpickle.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def load_weights(module: nn.Module, weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy weights into a module.

    Args:
        module: The module; parts of it may be lazy, and not initialised yet.
        weights: ``{"state_dict": ..., "buffers": ...}``, the latter being those that a state dict leaves out. Modules
            that were compiled in the process that wrote them need not be here.

    A module that says `strict_loading = False`, as Lightning has it, may have left names out of its state dict.

    Raises:
        RuntimeError: If a name or a shape in the state dict is not the module's.
        AttributeError: If a buffer's name is not.
    """
    state = {_plain_name(name): value for name, value in weights["state_dict"].items()}
    module.load_state_dict(state, strict=bool(getattr(module, "strict_loading", True)))
    for name, value in weights["buffers"].items():
        path, _, last = _plain_name(name).rpartition(".")
        owner = module.get_submodule(path)
        held = owner._buffers.get(last)
        if last not in owner._buffers:
            raise AttributeError(f"`{path}` has no buffer `{last}`.")
        if held is not None and not nn.parameter.is_lazy(held) and held.shape == value.shape:
            with torch.no_grad():
                held.copy_(value)
        else:
            owner._buffers[last] = value.clone()  # the file goes


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)
