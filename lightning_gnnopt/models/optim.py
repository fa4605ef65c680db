"""Optimizers and learning-rate schedulers from plain mappings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import optim
from torch.optim import lr_scheduler

from lightning_gnnopt._names import unknown_name

OPTIMIZERS: dict[str, type[optim.Optimizer]] = {
    name: cls
    for name, cls in vars(optim).items()
    if isinstance(cls, type) and issubclass(cls, optim.Optimizer) and cls is not optim.Optimizer
}
SCHEDULERS: dict[str, type[lr_scheduler.LRScheduler]] = {
    name: cls
    for name, cls in vars(lr_scheduler).items()
    if isinstance(cls, type) and issubclass(cls, lr_scheduler.LRScheduler) and not name.endswith("LRScheduler")
}


def make_factory(
    kind: str, spec: Mapping[str, Any] | Callable[..., Any], classes: Mapping[str, type[Any]]
) -> Callable[..., Any]:
    """Turn ``{"name": "Adam", "lr": 0.01}`` into a function of the parameters (or of the optimizer).

    Args:
        kind: ``"optimizer"`` or ``"scheduler"``, for the messages.
        spec: A mapping with ``name``, in any case, and the class's arguments; a callable is returned as it is.
        classes: The classes by name.

    Returns:
        A callable with one argument.

    Raises:
        ValueError: If `spec` is of another kind or lacks ``name``, or the name or an argument is unknown or missing.

    Examples:
        >>> import torch
        >>> make_factory("optimizer", {"name": "sgd", "lr": 0.1}, OPTIMIZERS)([torch.zeros(1)]).defaults["lr"]
        0.1
    """
    if not isinstance(spec, Mapping):
        if callable(spec):
            return spec
        suggestion = spec if isinstance(spec, str) else next(iter(classes))
        raise ValueError(
            f"`{kind}` must be a mapping with a `name`, or a callable, but got {spec!r}."
            f" HINT: for instance `{kind}={{'name': {suggestion!r}}}`."
        )
    if "name" not in spec:
        raise ValueError(f"`{kind}` must say its class under the key `name`, but has only {sorted(spec)}.")
    by_lower = {name.lower(): cls for name, cls in classes.items()}
    cls: Any = by_lower.get(str(spec["name"]).lower())
    if cls is None:
        raise ValueError(unknown_name(kind, spec["name"], classes))

    options = {key: value for key, value in spec.items() if key != "name"}
    _, *parameters = inspect.signature(cls).parameters.values()  # the first one is what it is built on
    known = [p.name for p in parameters]
    for key in options:
        if key not in known:
            raise ValueError(unknown_name(f"argument of `{cls.__name__}`", key, known))
    for p in parameters:
        if p.default is inspect.Parameter.empty and p.name not in options:
            raise ValueError(f"`{kind}` needs `{p.name}` to build `{cls.__name__}`, but has only {sorted(options)}.")
    return functools.partial(cls, **options)


def to_plain(value: Any) -> Any:
    """Turn mappings and sequences of any kind, such as Hydra's, into dicts and lists; leave the rest alone."""
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(v) for v in value]
    return value
