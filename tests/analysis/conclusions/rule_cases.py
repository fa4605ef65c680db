"""What the tests of the rules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_gnnopt.analysis.conclusions.advice import Advice
from lightning_gnnopt.analysis.conclusions.facts import Facts

GIB, MIB = 2**30, 2**20
Rule = Callable[[Facts], Advice | None]


def said(rule: Rule, facts: Facts) -> Advice:
    advice = rule(facts)
    assert advice is not None
    assert advice.rule == rule.__name__
    assert advice.finding.endswith(".")
    return advice


def over(**changes: Any) -> Facts:
    numbers: dict[str, Any] = {
        "limit_bytes": 6 * GIB,
        "static_bytes": GIB,
        "peaks_bytes": (4 * GIB,) * 127 + (6 * GIB,) * 3,  # 3 of 130
        "over_limit": 3 / 130,
        "excess_bytes": 3 * GIB,
        "edge_bytes": 1024.0,
        "measured_edges": 786_432_000,
    }
    return Facts(**numbers | changes)
