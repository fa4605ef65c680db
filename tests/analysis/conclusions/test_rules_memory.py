from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gnnopt.analysis.conclusions import rules_memory
from lightning_gnnopt.analysis.conclusions.facts import Facts
from tests.analysis.conclusions.rule_cases import GIB, MIB, over, said


def test_batches_over_the_limit_are_pruned_by_what_they_exceed_it() -> None:
    advice = said(rules_memory.over_limit, over())
    assert advice.finding == (
        "2.3 % of batches exceed 6.0 GiB (3 of 130 measured steps, the largest 7.0 GiB, model included)."
    )
    # 3 GiB of 1 KiB for each edge are 3,145,728 edges
    assert advice.remedy == "`MemoryControl` would prune 0.4 % of edges, or none with `on_exceed='split'`."
    assert advice.speedup == 1.0


def test_no_batch_over_the_limit_is_no_finding() -> None:
    assert rules_memory.over_limit(over(over_limit=0.0, excess_bytes=0)) is None
    assert rules_memory.over_limit(over(over_limit=None)) is None
    assert rules_memory.over_limit(over(limit_bytes=None)) is None
    assert rules_memory.over_limit(over(over_limit=0.0, memory_control=True)) is None


def test_pruning_is_recommended_without_a_number_or_not_at_all() -> None:
    for facts in (over(edge_bytes=None), over(measured_edges=0)):
        assert said(rules_memory.over_limit, facts).remedy == (
            "`MemoryControl` would prune those batches, or run them in parts (`on_exceed='split'`)."
        )
    most = 2 * 3 * 2**20  # edges of which half would go
    assert (
        "would have to prune 50 % of edges: lower `batch_size`"
        in said(rules_memory.over_limit, over(measured_edges=most)).remedy
    )
    assert "would prune 50 % of edges" in said(rules_memory.over_limit, over(measured_edges=most + 1)).remedy
    assert "prune 100 % of edges" in said(rules_memory.over_limit, over(measured_edges=1)).remedy


def test_memory_control_that_is_on_needs_a_smaller_budget() -> None:
    advice = said(rules_memory.over_limit, over(memory_control=True))
    assert advice.finding.endswith("although `MemoryControl` is on.")
    assert advice.remedy.startswith("Give it a `budget` below 6.0 GiB;")


def test_a_model_that_is_too_large_cannot_be_helped_by_pruning() -> None:
    advice = said(rules_memory.over_limit, over(static_bytes=6 * GIB, peaks_bytes=(), over_limit=None))
    assert advice.finding == (
        "The model alone (parameters, gradients, the optimizer's state) takes 6.0 GiB, which leaves nothing of 6.0 GiB"
        " for a step."
    )
    assert advice.remedy.startswith("Pruning or splitting batches cannot help")
    assert rules_memory.over_limit(over(static_bytes=6 * GIB - 1, over_limit=0.0)) is None


def test_peaks_that_vary_waste_memory() -> None:
    facts = Facts(peaks_bytes=(100 * MIB, 110 * MIB, 90 * MIB, 100 * MIB, 160 * MIB), static_bytes=40 * MIB)
    advice = said(rules_memory.memory_varies, facts)
    assert advice.finding == (
        "The largest of 5 measured peaks is 1.6x the median (160.0 MiB and 100.0 MiB): in half of the steps 38 % or"
        " more of the memory that it needs lies idle."
    )
    assert advice.remedy == (
        "`MemoryControl` with a `budget` of 200.0 MiB (model included) holds the few large batches below it, so that"
        " `batch_size` can be raised by up to 60 %."
    )
    assert "of 160.0 MiB holds" in said(rules_memory.memory_varies, replace(facts, static_bytes=None)).remedy


@pytest.mark.parametrize(
    ("peaks", "controlled", "found"),
    [
        ((100, 100, 100, 100, 131), False, True),
        ((100, 100, 100, 100, 130), False, False),
        ((100, 100, 100, 100, 500), True, False),
        ((100, 100, 100, 500), False, False),  # too few
        ((0, 0, 0, 0, 1), False, False),
        ((), False, False),
    ],
)
def test_the_spread_of_peaks_has_a_threshold(peaks: tuple[int, ...], controlled: bool, found: bool) -> None:
    facts = Facts(peaks_bytes=peaks, memory_control=controlled)
    assert (rules_memory.memory_varies(facts) is not None) == found


def test_expansion_names_what_holds_most() -> None:
    assert rules_memory.memory_expands(Facts(expansion=10.0)) is None
    assert rules_memory.memory_expands(Facts()) is None
    assert said(rules_memory.memory_expands, Facts(expansion=10.6)).finding == (
        "A step holds 11 times the bytes of its batch."
    )
    alive = {"convs.0 message": 600, "convs.0 vertex": 150, "forward": 50}
    advice = said(rules_memory.memory_expands, Facts(expansion=105.0, loaded_bytes=3.0 * MIB, alive_bytes=alive))
    assert advice.finding == (
        "A step holds 105 times the bytes of its batch (3.0 MiB): 75 % of the largest tensors at its peak are of"
        " `convs.0 message`."
    )
