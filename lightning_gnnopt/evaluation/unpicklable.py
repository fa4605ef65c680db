"""Says what it is in an object that cannot be pickled, and where."""

from __future__ import annotations

import copyreg
import inspect
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol


class Pickler(Protocol):
    """What is asked of a pickler."""

    def dump(self, obj: Any) -> Any:
        """Pickle an object."""
        ...

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is pickled; NotImplemented leaves that to the object."""
        ...


def explain(value: Any, error: Exception, make_pickler: Callable[[frozenset[int]], Pickler]) -> str:
    """Find what cannot be pickled in an object, and name it as a user would.

    Args:
        value: The object.
        error: What was raised when it was pickled.
        make_pickler: Makes a pickler that writes nowhere, and takes the objects of these ids for None.

    Returns:
        A sentence with the path of attributes and the reason, and a hint.
    """

    def failure_of(child: Any, without: frozenset[int]) -> Exception | None:
        try:
            make_pickler(without).dump(child)
        except Exception as failure:
            return failure
        return None

    path, found, ancestors = "", value, [value]
    for _ in range(100):
        for label, child in _children(found, make_pickler):
            without = frozenset(map(id, ancestors))
            if id(child) not in without and (failure := failure_of(child, without)) is not None:
                path, found, error = path + label, child, failure
                ancestors.append(child)
                break
        else:
            break
    kind = type(found)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    where = f"`{path.lstrip('.')}` (a `{name}`)" if path else f"A `{name}`"
    return (
        f"{where} cannot be sent to the validation process: {type(error).__name__}: {error}."
        " HINT: leave it out in a `__getstate__` of the class that holds it, and make it again when it is needed; what"
        " a datamodule holds can be made in that process by a `datamodule_factory`."
    )


def _children(value: Any, make_pickler: Callable[[frozenset[int]], Pickler]) -> Iterator[tuple[str, Any]]:
    """What an object is pickled with, by the names that a user knows."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", item) for number, item in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        seen = inspect.getclosurevars(value)
        yield from ((f".<{name}>", item) for name, item in (dict(seen.nonlocals) | dict(seen.globals)).items())
    elif not isinstance(value, type | types.ModuleType):
        try:
            reduced = make_pickler(frozenset()).reducer_override(value)
            reduced = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if reduced is NotImplemented else reduced
        except Exception:  # it is the one
            return
        if isinstance(reduced, tuple):
            function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
            yield from _attributes(state)
            first = 1 if function is copyreg.__newobj__ else 0  # type: ignore[attr-defined,unused-ignore]
            yield from ((f".<argument {number}>", item) for number, item in enumerate(arguments[first:]))
            yield from ((f"[{number}]", item) for number, item in enumerate(items or ()))
            yield from ((f"[{key!r}]", item) for key, item in pairs or ())


def _attributes(state: Any) -> Iterator[tuple[str, Any]]:
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            for name, item in part.items():
                if name in ("_modules", "_parameters", "_buffers") and isinstance(item, dict):
                    yield from _attributes(item)
                else:
                    yield f".{name}", item
        elif part is not None:
            yield ".<state>", part
