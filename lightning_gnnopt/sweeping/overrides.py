"""What a job was asked for on the command line, as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser


def plain_overrides(lines: Iterable[str]) -> dict[str, Any]:
    """Read a job's overrides; of two with one key the last holds, as for Hydra.

    Args:
        lines: As Hydra lists them, such as ``"model=gat"`` or ``"+trainer.limit_val_batches=2"``.

    Returns:
        Numbers, strings, booleans, None, and lists and dicts of them, by key without a leading ``+``. The key of a
        removal begins with ``~``, and its value is None where it has none.

    Raises:
        hydra.errors.OverrideParseException: If Hydra cannot read one.

    Examples:
        >>> plain_overrides(["model=gat", "seed=3", "sampler.num_neighbors=[15,10]", "~callbacks.progress_bar"])
        {'model': 'gat', 'seed': 3, 'sampler.num_neighbors': [15, 10], '~callbacks.progress_bar': None}
    """
    parsed = OverridesParser.create().parse_overrides(list(lines))
    return {one.get_key_element().lstrip("+"): _json_value(one.value()) for one in parsed}


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    return str(value)


def show_value(value: object) -> str:
    """Write a value of an override for people, the way it was given.

    Examples:
        >>> show_value([15, 10]), show_value("gat"), show_value(None), show_value(0.01)
        ('[15,10]', 'gat', 'null', '0.01')
    """
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
