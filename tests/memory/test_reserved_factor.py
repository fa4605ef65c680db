from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.meter import Peak
from lightning_gnnopt.memory.predictors import AnalyticPredictor
from lightning_gnnopt.memory.reserved import Reserve
from lightning_gnnopt.memory.reserved_factor import ReservedFactor
from lightning_gnnopt.memory.tape import AllocationTape

MIB = 2**20


def peak(requested: int, *, unreleasable: int = 0, reserved: int = 10**9, rounding: int = 0) -> Peak:
    """Of a step that began with 100 requested bytes, in blocks that are a little larger."""
    return Peak(
        allocated_bytes=requested - 100 + rounding,
        requested_bytes=requested - 100,
        held_bytes=100 + rounding,
        held_requested_bytes=100,
        reserved_bytes=reserved,
        unreleasable_bytes=unreleasable,
    )


def after(factor: ReservedFactor, *peaks: Peak, times: int = 20) -> float:
    for _ in range(times):
        for one in peaks:
            factor.update(one)
    return factor.value


SIMULATED = Reserve(factor=1.2, bound=1.5)


def test_it_starts_with_what_was_simulated() -> None:
    factor = ReservedFactor(SIMULATED)
    assert (factor.value, factor.measured) == (1.2, None)
    assert after(factor, peak(1000, unreleasable=10), times=19) == 1.2
    assert after(factor, peak(1000, unreleasable=10), times=1) == 1.01


def test_less_was_enough() -> None:
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=80)) == 1.08
    # Blocks are larger than what was asked for: 1,040 in use and 30 free.
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=30, rounding=20)) == 1.07
    # Never more than was reserved.
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=900, reserved=1150)) == 1.15


def test_a_bound_above_is_no_reason() -> None:
    """It is a bound, and is as loose in the simulation."""
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=350)) == 1.2
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=500)) == 1.2


def test_more_than_the_simulation_showed() -> None:
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=800)) == pytest.approx(1.2 * 1.8 / 1.5)
    exact = ReservedFactor(Reserve(factor=1.2, bound=1.2))
    assert after(exact, peak(1000, unreleasable=400)) == pytest.approx(1.4)


def test_the_largest_counts_beside_the_largest() -> None:
    # The small steps still have what the large ones left: 1.10, not 4.
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=100), peak(200, unreleasable=600)) == 1.1
    assert after(ReservedFactor(SIMULATED), peak(1000, unreleasable=100), peak(800, unreleasable=350)) == 1.15


def test_old_steps_are_forgotten() -> None:
    factor = ReservedFactor(SIMULATED, window=50)
    assert after(factor, peak(1000, unreleasable=150)) == 1.15
    assert after(factor, peak(1000, unreleasable=50), times=49) == 1.15
    assert after(factor, peak(1000, unreleasable=50), times=1) == 1.05


def test_segments_that_expand_count_as_reserved() -> None:
    factor = ReservedFactor(Reserve(factor=1.05, bound=1.05), expandable=True)
    assert after(factor, peak(1000, reserved=1020)) == 1.02
    assert after(factor, peak(1000, reserved=1300)) == pytest.approx(1.3)


def test_what_was_not_simulated_is_bounded() -> None:
    factor = ReservedFactor(Reserve(reason="no tape"))
    assert factor.value == 1.0
    assert after(factor, peak(1000, unreleasable=300)) == 1.3


def stage_of(monkeypatch: pytest.MonkeyPatch, device: str, *, conf: str = "", tapes: bool = True) -> Any:
    """20 MiB held, and 25 more at the peak of a step, or 30 in the first one of an accumulation."""
    # torch reads the environment once, when it is first asked.
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", str, raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", conf)
    sizes = {"step": 25, "first": 30}
    solved = {
        kind: AllocationTape([[size * MIB, 0], [-size * MIB, 0]], signs=[1, -1], names=["nodes_0"])
        for kind, size in sizes.items()
    }
    reader: Any = SimpleNamespace(names=("nodes_0",))
    footprint = Footprint(
        reader=reader,
        predictors={kind: AnalyticPredictor(tape.pieces(), feature_names=["nodes_0"]) for kind, tape in solved.items()},
        batch_row=np.zeros(2),
        held_bytes=20 * MIB,
        kinds=("step", "first"),
    )
    model = nn.Linear(1, 1, device="meta")
    factor = ReservedFactor.of_stage(
        solved if tapes else {}, footprint, [np.ones(1)], pl_module=model, device=torch.device(device)
    )
    return factor, footprint


def test_a_stage_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # The costlier kind: 30 MiB. What is held comes after the first step, into its segment; then there are two of 30.
    factor, footprint = stage_of(monkeypatch, "cuda")
    assert factor.value == footprint.reserved_factor == pytest.approx(60 / 50)
    assert not factor.expandable
    # Two pages are mapped for 30; 20 of state in the first, then 30 more in 10 + 20 of the second and a third one.
    factor, footprint = stage_of(monkeypatch, "cuda", conf="expandable_segments:True")
    assert factor.value == footprint.reserved_factor == pytest.approx(60 / 50)
    assert factor.expandable


def test_a_stage_without_a_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage_of(monkeypatch, "cpu")[0] is None
    assert stage_of(monkeypatch, "cpu")[1].reserved_factor == 1.0
    factor, footprint = stage_of(monkeypatch, "cuda", tapes=False)
    assert (factor.value, factor.simulated.reason) == (1.0, "there is no tape of the steps")
    factor, footprint = stage_of(monkeypatch, "cuda", conf="backend:cudaMallocAsync")
    assert (factor.value, footprint.reserved_factor) == (1.0, 1.0)
    assert "cudaMallocAsync" in factor.simulated.reason


def test_what_does_not_count_is_passed_over() -> None:
    factor = ReservedFactor(SIMULATED)
    assert after(factor, Peak(allocated_bytes=5)) == 1.2
    assert after(factor, Peak(allocated_bytes=5, held_bytes=7, reserved_bytes=12)) == 1.2
    assert factor.measured is None


@given(
    st.floats(1, 3),
    st.floats(0, 1),
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)), min_size=20, max_size=60),
)
def test_never_below_one_and_never_above_what_was_enough(
    simulated: float, looser: float, steps: list[tuple[int, int, int]]
) -> None:
    factor = ReservedFactor(Reserve(factor=simulated, bound=simulated + looser), window=30)
    for requested, rounding, unreleasable in steps:
        factor.update(peak(100 + requested, rounding=rounding, unreleasable=unreleasable))
    rows = np.array(steps[-30:])
    enough = (100 + rows[:, 0] + 2 * rows[:, 1] + rows[:, 2]).max() / (100 + rows[:, 0].max())
    assert factor.measured == pytest.approx(enough)
    assert 1 <= factor.value <= max(1.0, enough) + 1e-9
    assert factor.value >= min(simulated, enough) - 1e-9
