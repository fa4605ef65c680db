from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gnnopt.analysis.conclusions.advising import RULES, advise, verdict
from lightning_gnnopt.analysis.conclusions.facts import Facts
from lightning_gnnopt.analysis.records import BatchRecord, LoadRecord, Records, TimeRecord, ValidationRecord
from tests.analysis.conclusions.rule_cases import GIB, over


def test_saving_comes_first_then_memory_then_explaining() -> None:
    facts = Facts(
        timed_steps=5,
        step_s=1.0,
        phase_s={"wait": 0.2, "optimizer": 0.3, "forward": 0.5},
        num_workers=0,
        cores=8,
        fit_s=10.0,
        validation_s=4.0,
        kind_s={"vertex": 0.1, "edge": 0.4},
        part_s={"message": 0.4},
        peaks_bytes=(1, 1, 1, 1, 2),
        expansion=20.0,
        static_bytes=0,
        limit_bytes=1,
        over_limit=0.2,
        excess_bytes=1,
    )
    found = advise(facts)
    assert [(a.rule, round(a.speedup, 3)) for a in found] == [
        ("validation_blocks", 1.667),
        ("optimizer_slow", 1.429),
        ("waits_for_batches", 1.25),
        ("over_limit", 1.0),
        ("memory_varies", 1.0),
        ("memory_expands", 1.0),
        ("edge_dominates", 1.0),
        ("too_few_steps", 1.0),
    ]


def test_nothing_recorded_gives_one_piece_of_advice() -> None:
    assert [a.rule for a in advise(Facts())] == ["too_few_steps"]


def test_a_run_without_a_bottleneck_needs_no_advice() -> None:
    facts = Facts(timed_steps=50, step_s=1.0, phase_s={"forward": 1.0}, kind_s={"vertex": 0.5, "edge": 0.5})
    assert advise(facts) == []


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.__name__ for rule in RULES}) == len(RULES) == 15


def test_the_verdict_names_what_holds_up_training_then_what_is_computed() -> None:
    facts = Facts(
        timed_steps=50,
        step_s=100.0,
        phase_s={"wait": 37.0, "forward": 43.0, "backward": 20.0},
        kind_s={"vertex": 9.5, "edge": 40.5, "": 13.0},
        part_s={"gather": 10.0, "message": 30.5},
    )
    assert verdict(facts) == (
        "Training computes 63 % of the time and waits for batches 37 %; of the layers' work, 81 % is edge computation,"
        " mostly message."
    )
    spread = replace(facts, part_s={"gather": 13.0, "message": 16.0, "aggregate": 11.5})
    assert verdict(spread).endswith("81 % is edge computation, above all message.")
    assert verdict(replace(facts, part_s={})).endswith("81 % is edge computation.")


@pytest.mark.parametrize(
    ("kinds", "closed", "clause"),
    [
        ({"vertex": 60.0, "edge": 40.0}, 0, "of the layers' work, 60 % is vertex computation"),
        ({"vertex": 48.0, "edge": 52.0}, 0, "of the layers' work, 52 % is for edges and 48 % for vertices"),
        (
            {"vertex": 10.0, "edge": 30.0, "": 60.0},
            0,
            "of the computation, 60 % lies outside the message-passing layers",
        ),
        ({"": 100.0}, 0, "no message-passing layers were found"),
        ({}, 0, "no message-passing layers were found"),
        ({"": 100.0}, 1, "the layers could not be looked into"),
    ],
)
def test_the_verdict_on_the_computation(kinds: dict[str, float], closed: int, clause: str) -> None:
    facts = Facts(timed_steps=50, step_s=100.0, phase_s={"forward": 96.0, "wait": 4.0}, kind_s=kinds, closed=closed)
    assert verdict(facts) == f"Training computes 96 % of the time, and little holds it up; {clause}."


@pytest.mark.parametrize(
    ("phases", "beginning"),
    [
        (
            {"wait": 6.0, "transfer": 20.0},
            "Training computes 50 % of the time and spends 20 % on moving batches",
        ),
        ({"callbacks": 5.1}, "Training computes 50 % of the time and spends 5.1 % in callbacks; "),
        ({"optimizer": 15.1}, "Training computes 50 % of the time and spends 15 % in the optimizer; "),
        ({"optimizer": 14.9}, "Training computes 50 % of the time, and little holds it up; "),
        (
            {"other": 21.0},
            "Training computes 50 % of the time and spends 21 % in the loop itself, ",
        ),
        ({"wait": 30.0, "transfer": 51.0}, "Training spends 51 % of the time on moving batches to the device; "),
        ({"callbacks": 60.0}, "Training spends 60 % of the time in callbacks; "),
    ],
)
def test_the_verdict_names_the_largest_hindrance(phases: dict[str, float], beginning: str) -> None:
    facts = Facts(timed_steps=50, step_s=100.0, phase_s={"forward": 30.0, "backward": 20.0} | phases)
    assert verdict(facts).startswith(beginning)


def test_validation_is_weighed_against_the_rest_of_the_fit() -> None:
    facts = Facts(
        timed_steps=50, step_s=1.0, phase_s={"wait": 0.6, "forward": 0.4}, fit_s=100.0, validation_s=41.0, validations=3
    )  # waiting: 60 % of the other 59 %
    assert verdict(facts) == (
        "Validation takes 41 % of the fit while training stands still; no message-passing layers were found."
    )
    assert verdict(replace(facts, validation_s=30.0)).startswith("Training waits for batches 60 % of the time;")
    assert verdict(replace(facts, async_validation=True)).startswith("Training waits for batches 60 % of the time;")
    # the largest thing that holds training up, and still less than the computation: 41 % of the fit, and 90 % of 59 %
    computing = replace(facts, phase_s={"wait": 0.1, "forward": 0.9})
    assert verdict(computing).startswith("Training computes 90 % of the time between validations, which take 41 % of")
    # 70 % and 60 % of the other 60 % of the fit: more and less than the 40 %
    assert verdict(replace(facts, phase_s={"wait": 0.3, "forward": 0.7}, validation_s=40.0)).startswith(
        "Training computes 70 % of the time between validations"
    )
    assert verdict(replace(facts, phase_s={"wait": 0.4, "forward": 0.6}, validation_s=40.0)).startswith(
        "Validation takes 40 % of the fit while training stands still;"
    )


def test_the_verdict_without_timed_steps() -> None:
    assert verdict(Facts()) == "Nothing was recorded."
    assert verdict(Facts(fit_steps=2)) == "No step was timed."
    assert verdict(Facts(fit_s=10.0, validation_s=8.0)) == (
        "Validation takes 80 % of the fit while training stands still."
    )
    assert verdict(over()) == "No step was timed; 2.3 % of batches exceed the limit of 6.0 GiB."


def test_the_verdict_ends_with_memory() -> None:
    times: dict[str, Any] = {"timed_steps": 50, "step_s": 1.0, "phase_s": {"forward": 1.0}}
    assert verdict(over(**times)).endswith("were found; 2.3 % of batches exceed the limit of 6.0 GiB.")
    assert verdict(over(**times, static_bytes=7 * GIB)).endswith(
        "; the model alone takes more memory than the limit of 6.0 GiB."
    )
    assert verdict(over(**times, static_bytes=GIB, beside_bytes=6 * GIB)).endswith(
        "; the model with all that stays on the device takes more memory than the limit of 6.0 GiB."
    )
    assert verdict(over(**times, over_limit=0.0)).endswith("were found.")


def test_from_records_to_the_sentence() -> None:
    records = Records(info={"num_workers": 1, "cores": 4, "device": "cpu", "fit_s": 20.0, "limit_bytes": 1000})
    for batch in range(12):
        peak_bytes = 600 + 100 * batch if batch < 5 else None  # with the batch 700, 800, 900, 1000, 1100
        records.batches.append(BatchRecord(batch, "neighbor", 8, 8, 9, 50 + 10 * batch, 100, 1.0, peak_bytes, True))
        records.loads.append(LoadRecord(batch, 0.75, 0.25, 0.0, 0.375, True, 0.0))
        for label, seconds in {
            ("wait", "", "", ""): 0.375,
            ("forward", "conv", "vertex", ""): 0.125,
            ("backward", "conv", "edge", "message"): 0.375,
            ("backward", "conv", "edge", "gather"): 0.125,
        }.items():
            records.times.append(TimeRecord(batch, *label, seconds, 1))
    records.validations.append(ValidationRecord(12, 3.0, False))
    facts = Facts.from_records(records)
    assert verdict(facts) == (
        "Training computes 62 % of the time and waits for batches 38 %; of the layers' work, 80 % is edge computation,"
        " mostly message; 20 % of batches exceed the limit of 1000 B."
    )
    found = {advice.rule: advice for advice in advise(facts)}
    assert list(found) == ["waits_for_batches", "validation_blocks", "over_limit", "edge_dominates"]
    assert found["waits_for_batches"].remedy.startswith("`num_workers` 1 -> 2 would hide it (theoretical 1.6x)")
    assert found["waits_for_batches"].speedup == pytest.approx(1 / 0.625)
    assert found["validation_blocks"].speedup == pytest.approx(20 / 17)
    # 100 bytes too many, 10 for each edge: 10 of 50 + 60 + 70 + 80 + 90
    assert "would prune 2.9 % of edges" in found["over_limit"].remedy
