from __future__ import annotations

import pytest

from lightning_gnnopt.analysis.conclusions import rules_layers
from lightning_gnnopt.analysis.conclusions.facts import Facts
from tests.analysis.conclusions.rule_cases import said


def layers(vertex: float, edge: float, **parts: float) -> Facts:
    return Facts(
        timed_steps=50,
        step_s=200.0,
        phase_s={"forward": 200.0},
        kind_s={"vertex": vertex, "edge": edge, "": 200.0 - vertex - edge},
        part_s=parts,
    )


def test_edge_computation_dominates_from_its_threshold_on() -> None:
    advice = said(rules_layers.edge_dominates, layers(19, 81, gather=20.25, message=50.22, aggregate=10.53))
    assert advice.finding == (
        "Edge computation is 81 % of the layers' time and 40 % of the step: message dominates with 62 % of it."
    )
    assert "`sampler='labor'`" in advice.remedy
    assert "fewer or smaller heads" in advice.remedy
    assert rules_layers.edge_dominates(layers(40, 60)) is not None
    assert rules_layers.edge_dominates(layers(41, 59)) is None
    assert rules_layers.edge_dominates(Facts(kind_s={"": 5.0})) is None


@pytest.mark.parametrize("part", ["gather", "message", "aggregate", "update", "fused", "edge_update", "normalize"])
def test_each_part_has_its_remedy(part: str) -> None:
    advice = said(rules_layers.edge_dominates, layers(0, 100, **{part: 70.0, "other": 30.0}))
    assert f": {part} dominates with 70 % of it." in advice.finding
    assert advice.remedy == (
        f"Fewer edges (smaller fan-outs, `sampler='labor'`) shorten all of it; {rules_layers._REMEDIES[part]}."
    )


def test_parts_that_are_not_known_are_not_named() -> None:
    advice = said(rules_layers.edge_dominates, layers(0, 100))
    assert advice.finding == "Edge computation is 100 % of the layers' time and 50 % of the step."
    assert advice.remedy == "Fewer edges (smaller fan-outs, `sampler='labor'`) shorten all of it."


def test_vertex_computation_dominates_up_to_the_other_threshold() -> None:
    advice = said(rules_layers.vertex_dominates, layers(60, 40))
    assert advice.finding == "Vertex computation is 60 % of the layers' time and 30 % of the step."
    assert rules_layers.vertex_dominates(layers(59, 41)) is None
    assert rules_layers.vertex_dominates(Facts()) is None
    assert said(rules_layers.vertex_dominates, Facts(kind_s={"vertex": 1.0})).finding == (
        "Vertex computation is 100 % of the layers' time."
    )


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (layers(40, 60, gather=30, message=30, aggregate=30, update=10), True),
        (layers(41, 59, gather=30, message=30, aggregate=30, update=10), False),  # not dominated by edges
        (layers(40, 60, gather=30, message=31, aggregate=29, update=10), False),  # messages compute something
        (layers(40, 60, gather=30, message=1, aggregate=29, update=40), True),
        (layers(40, 60, gather=30, message=1, aggregate=28, update=41), False),  # others take the time
        (layers(40, 60, gather=30, message=0, aggregate=29, fused=1, update=40), False),  # it is fused
        (layers(40, 60), False),
    ],
)
def test_fusing_helps_where_messages_are_simple(facts: Facts, found: bool) -> None:
    assert (rules_layers.fused_helps(facts) is not None) == found


def test_fusing_is_promised_to_no_layer_that_cannot() -> None:
    advice = said(rules_layers.fused_helps, layers(20, 80, gather=45, message=5, aggregate=40, update=10))
    assert advice.finding == (
        "Gather, message and aggregate are 90 % of the edge computation, but message only 5.0 %: rows are moved to"
        " edges and back, and little is computed there."
    )
    assert advice.remedy.endswith("layers without one gain nothing.")
