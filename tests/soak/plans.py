"""What is run next: drawn from a seed and a number, so that any run can be repeated alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .faults import FAULTS

NETS = ("gcn", "sage", "gat")
SAMPLERS = ("neighbor", "labor", "fastgcn", "ladies", "cluster", "saint-node", "saint-edge", "saint-walk", "shadow")
TRAINS_ONLY = SAMPLERS[4:8]  # their batches are subgraphs to train on
REMEDIES = (("resample", "prune"), ("prune",), ("split",), ("shrink",), ("resample", "split"))
NUM_RECIPES = 27  # so that references are met again


@dataclass(frozen=True)
class Control:
    """MemoryControl in a fit.

    Attributes:
        share: The budget, as a share of the largest step without control.
        on_exceed: What is tried.
    """

    share: float
    on_exceed: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """All that a fit's numbers may depend on; everything else in a :class:`Plan` must not change a bit."""

    graph: str
    net: str
    sampler: str
    dropout: float
    epochs: int
    seed: int
    layerwise: bool
    schedule: bool


@dataclass(frozen=True)
class Plan:
    """One fit, or some passes over a loader.

    Attributes:
        number: Which one it is.
        recipe: What its numbers depend on.
        kind: ``"fit"`` or ``"loader"``.
        num_workers: Threads that prepare batches.
        on_device: Whether batches go through a `SimulatedDevice`.
        is_async: Whether there is `AsyncValidation`.
        control: `MemoryControl`, if there is one.
        is_profiled: Whether there is a `GNNProfiler`.
        fault: A key of `FAULTS`; None for a fit that goes well.
        when: When the fault comes, as a share of the run.
        save_every: Steps between two checkpoints.
    """

    number: int
    recipe: Recipe
    kind: str = "fit"
    num_workers: int = 0
    on_device: bool = False
    is_async: bool = False
    control: Control | None = None
    is_profiled: bool = False
    fault: str | None = None
    when: float = 0.0
    save_every: int = 2


def draw_recipe(seed: int, number: int) -> Recipe:
    """Draw one of the recipes of a soak."""
    rng = random.Random(f"recipe {seed} {number}")
    sampler = SAMPLERS[number % len(SAMPLERS)]
    return Recipe(
        graph=rng.choice(("digits-knn", "dcsbm")),
        net=NETS[number // len(SAMPLERS) % len(NETS)],
        sampler=sampler,
        dropout=rng.choice((0.0, 0.5)),
        epochs=rng.choice((2, 3)),
        seed=rng.randrange(1000),
        layerwise=sampler in TRAINS_ONLY or rng.random() < 0.2,
        schedule=rng.random() < 0.3,
    )


def draw_plan(seed: int, number: int) -> Plan:
    """Draw the plan of this number."""
    rng = random.Random(f"plan {seed} {number}")
    recipe = draw_recipe(seed, rng.randrange(NUM_RECIPES))
    plan = Plan(
        number,
        recipe,
        num_workers=rng.randrange(4),
        on_device=rng.random() < 0.25,
        when=rng.random(),
        save_every=rng.choice((1, 2, 3, 5)),
    )
    if rng.random() < 0.1:
        return replace(plan, kind="loader")
    plan = replace(plan, is_async=rng.random() < 0.08, is_profiled=rng.random() < 0.2)
    if rng.random() < 0.35:
        share, on_exceed = rng.choice((4.0, 4.0, 0.95, 0.85, 0.7)), rng.choice(REMEDIES)
        if "shrink" in on_exceed and recipe.sampler in TRAINS_ONLY:  # refused: their batches cannot do without seeds
            on_exceed = ("prune",)
        plan = replace(plan, control=Control(share, on_exceed))
    if rng.random() < 0.7:
        fitting = {name: fault.weight for name, fault in FAULTS.items() if fault.fits(plan)}
        plan = replace(plan, fault=rng.choices([*fitting], [*fitting.values()])[0])
    return plan
