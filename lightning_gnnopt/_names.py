"""The one sentence for a name that nothing answers to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that `name` is unknown, suggest the nearest known name, and list them all.

    Args:
        kind: What the name stands for, e.g. ``"dataset"``.
        name: The name that was asked for.
        known: The names there are.

    Returns:
        One line for an error message.

    Examples:
        >>> unknown_name("model", "gatt", ["gcn", "gat", "sage"])
        "Unknown model 'gatt'. Did you mean 'gat'? Known: gat, gcn, sage."
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = ""
    if nearest:
        original = next(n for n in names if n.lower() == nearest[0])
        hint = f" Did you mean {original!r}?"
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."
