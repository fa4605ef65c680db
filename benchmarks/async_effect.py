"""Of the speed-up that validation beside training can give, the part that it gives.

Where validation takes the share X of an epoch, N epochs with validation beside training take
``1 / N + (N - 1) / N * max(X, 1 - X)`` of the time that they take with validation within training: the first epoch's
training and the last one's validation have nothing to run beside, and all others take as long as the longer of the two.
The effect is the measured speed-up over this one, with X as the run with validation within training has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from benchmarks.async_cores import NOTE, two_cores
from benchmarks.async_runs import Case, Run, fit
from benchmarks.async_scale import AsyncScale
from benchmarks.harness import Cell, Figure, Measured, alternate, median

EFFECT, HOOKS, SLOWER = 0.95, 0.02, 1.03
_CLOSE = 0.02  # how far a share may be from the one wanted
_TRIES = 3
_TRY_EPOCHS = 3
_MARGIN = 1.05  # an epoch must not be shorter than wanted because a try was slow
_BESIDE, _WITHIN, _COLD = "beside", "within", "beside, not waited for"


def theory(share: float, epochs: int) -> float:
    """Compute the time with validation beside training over the time with it within.

    Args:
        share: Validation's share of an epoch, X.
        epochs: Number of epochs, N.

    Examples:
        >>> theory(0.5, 10)
        0.55
    """
    return 1 / epochs + (epochs - 1) / epochs * max(share, 1 - share)


def plan(share: float, *, step_s: float, val_step_s: float, epoch_s: float) -> tuple[int, int]:
    """Choose how many batches of both kinds make an epoch in which validation has a share.

    Args:
        share: The share, between 0 and 1.
        step_s: Seconds of a training batch.
        val_step_s: Seconds of a validation batch.
        epoch_s: Seconds of an epoch, at least.

    Returns:
        The batches for training and for validation: close to the share first of all, then few.

    Examples:
        >>> plan(0.3, step_s=0.1, val_step_s=0.05, epoch_s=1.0)
        (7, 6)
    """
    found: list[tuple[int, float, tuple[int, int]]] = []
    longest_s = max(2 * epoch_s, 1.1 * val_step_s / share, 1.1 * step_s / (1 - share))  # one batch is the least
    for train in range(1, 2 + int(longest_s / step_s)):
        ideal = share / (1 - share) * train * step_s / val_step_s
        for val in {max(1, int(ideal)), int(ideal) + 1}:
            all_s = train * step_s + val * val_step_s
            if epoch_s - 1e-9 <= all_s <= longest_s:
                error = abs(val * val_step_s / all_s - share)
                found.append((int(error / (_CLOSE / 4)), all_s, (train, val)))
    return min(found)[-1]


@dataclass(kw_only=True, eq=False)
class _Costs:
    """Seconds of a case's batches, as last measured."""

    step_s: float
    val_step_s: float

    @classmethod
    def of(cls, run: Run, batches: tuple[int, int]) -> _Costs:
        """Take them from a run with validation within training, without its first epoch."""
        train, val = batches
        return cls(step_s=median(run.clock.train_s[1:]) / train, val_step_s=median(run.clock.val_s[1:]) / val)


def measure_effect(scale: AsyncScale) -> Measured:
    """Train with validation beside and within, in turn, for each share, graph, model and way of sampling.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per case and share.
    """
    cases = [Case(graph=g, model=m, sampling=s) for g, m, s in product(scale.graphs, scale.models, scale.samplings)]
    pairs: dict[float, list[_Pair]] = {share: [] for share in scale.shares}
    rows: list[Mapping[str, Cell]] = []
    for number, case in enumerate(cases):
        costs = _Costs.of(_within(case, scale, (4, 4), _TRY_EPOCHS), (4, 4))
        for share in scale.shares:
            batches, costs = _calibrated(case, scale, share, costs)
            sides: dict[str, Callable[[], Run]] = {_WITHIN: partial(_within, case, scale, batches, scale.epochs)}
            sides[_BESIDE] = partial(_beside, case, scale, batches)
            if number >= len(cases) - scale.cold_cases:
                sides[_COLD] = partial(_beside, case, scale, batches, waits=False)
            if len(rows) % 2:  # each side is first as often as the other one
                sides = dict(reversed(sides.items()))
            runs: dict[str, Any] = alternate(sides, rounds=scale.rounds, warmup=0)
            costs = _Costs.of(runs[_WITHIN][-1], batches)
            cold = runs.get(_COLD, [None] * scale.rounds)
            here = [
                _Pair(within, beside, late, scale.epochs)
                for within, beside, late in zip(runs[_WITHIN], runs[_BESIDE], cold, strict=True)
            ]
            pairs[share] += here
            rows.append(_row(case, share, batches, here, scale))
    return [*_figures(pairs)], rows


@dataclass(frozen=True)
class _Pair:
    """Runs of one round."""

    within: Run
    beside: Run
    cold: Run | None
    epochs: int

    @property
    def share(self) -> float:
        return sum(self.within.clock.val_s) / self.within.total_s

    @property
    def effect(self) -> float:
        return self._effect(self.beside.total_s)

    @property
    def cold_effect(self) -> float | None:
        return None if self.cold is None else self._effect(self.cold.total_s)

    @property
    def effect_after_startup(self) -> float:
        """With all of the start in it, as if nothing could be done meanwhile."""
        return self._effect(self.beside.total_s + self.beside.clock.startup_s)

    def _effect(self, beside_s: float) -> float:
        return self.within.total_s / beside_s * theory(self.share, self.epochs)

    @property
    def effect_by_cpu(self) -> float:
        """From processor seconds, as if neither process had ever waited: other jobs on the machine change it little."""
        clock, n = self.beside.clock, self.epochs
        beside_s = (clock.cpu_s + clock.child_cpu_s) / n + (n - 1) / n * max(clock.cpu_s, clock.child_cpu_s)
        within = self.within.clock
        return within.cpu_s / beside_s * theory(within.val_cpu_s / within.cpu_s, n)

    @property
    def val_s(self) -> list[float]:
        """Seconds of the validations beside training."""
        return [span.end_s - span.start_s for span in self.beside.timeline.spans if span.side == "validation"]

    @property
    def hook_s(self) -> float:
        assert self.beside.validation is not None
        return median(self.beside.validation.hook_s)

    def slower(self, side: str, *, by_cpu: bool = False) -> float | None:
        """Over the median step of the others, that of those while a side is busy; None if there are too few of a kind.

        A file is written on the core that trains, which is why such steps are left out where validation is asked for.
        Processor seconds show what caches and memory cost that both cores share, and nothing of other jobs' turns.
        """
        spans = self.beside.timeline.spans
        busy = [(span.start_s, span.end_s) for span in spans if span.side == side]
        left_out = [(span.start_s, span.end_s) for span in spans if span.side == "writing" and side != "writing"]
        during, others = [], []
        for start_s, end_s, cpu_s in (step for epoch in self.beside.clock.steps[1:] for step in epoch):
            touched = [(first, last) for first, last in busy if start_s < last and end_s > first]
            if any(start_s < last and end_s > first for first, last in left_out):
                continue
            taken_s = cpu_s if by_cpu else end_s - start_s
            if not touched:
                others.append(taken_s)
            elif side == "writing" or any(first <= start_s and end_s <= last for first, last in touched):
                during.append(taken_s)
        return median(during) / median(others) if min(len(during), len(others)) > 3 else None


def _calibrated(case: Case, scale: AsyncScale, share: float, costs: _Costs) -> tuple[tuple[int, int], _Costs]:
    """Find batches with which validation has its share in a short run."""
    for _ in range(_TRIES):
        batches = plan(share, step_s=costs.step_s, val_step_s=costs.val_step_s, epoch_s=_MARGIN * scale.epoch_s)
        costs = _Costs.of(_within(case, scale, batches, _TRY_EPOCHS), batches)
        val_s, train_s = batches[1] * costs.val_step_s, batches[0] * costs.step_s
        if abs(val_s / (val_s + train_s) - share) <= _CLOSE and val_s + train_s >= scale.epoch_s:
            break
    return batches, costs


def _within(case: Case, scale: AsyncScale, batches: tuple[int, int], epochs: int) -> Run:
    return fit(*case.make(scale, *batches), epochs=epochs, beside=False)


def _beside(case: Case, scale: AsyncScale, batches: tuple[int, int], *, waits: bool = True) -> Run:
    return fit(*case.make(scale, *batches), epochs=scale.epochs, beside=True, waits=waits)


def _figures(pairs: Mapping[float, Sequence[_Pair]]) -> list[Figure]:
    figures = []
    for share, of_share in pairs.items():
        effects = [pair.effect for pair in of_share]
        figures.append(Figure.of_runs(f"effect, X = {share:g}", effects, unit="share", reach=EFFECT, sense=">="))
    for share, of_share in pairs.items():
        cold = [pair.cold_effect for pair in of_share if pair.cold_effect is not None]
        if cold:
            figures.append(
                Figure.of_runs(f"effect, start-up beside the first epochs, X = {share:g}", cold, unit="share")
            )
    for share, of_share in pairs.items():
        by_cpu = [pair.effect_by_cpu for pair in of_share]
        figures.append(Figure.of_runs(f"effect by processor seconds, X = {share:g}", by_cpu, unit="share"))
    everything = [pair for of_share in pairs.values() for pair in of_share]
    after = [pair.effect_after_startup for pair in everything]
    figures.append(Figure.of_runs("effect with the start-up waited for", after, unit="share"))
    # Where validation is the shorter part, training never waits for it in a hook.
    short = [pair for share, of_share in pairs.items() if share < 0.5 for pair in of_share]
    if short:
        hooks: dict[str, Any] = {"unit": "share", "reach": HOOKS, "sense": "<="}
        figures.append(
            Figure.of_runs("hooks per validation, of an epoch of 1 s", [pair.hook_s for pair in short], **hooks)
        )
    for side, name in (("validation", "the process validates"), ("writing", "a snapshot is written")):
        for of_cpu in (False, True):
            slower = [ratio for ratio in (pair.slower(side, by_cpu=of_cpu) for pair in short) if ratio is not None]
            goal: dict[str, Any] = {"reach": SLOWER, "sense": "<="} if side == "validation" and not of_cpu else {}
            title = f"a step while {name}, over others{', by processor seconds' if of_cpu else ''}"
            if slower:
                figures.append(Figure.of_runs(title, slower, unit="x", **goal))
    return figures


def _row(
    case: Case, share: float, batches: tuple[int, int], pairs: Sequence[_Pair], scale: AsyncScale
) -> Mapping[str, Cell]:
    def of(values: Sequence[float]) -> float:
        return round(median(values), 3)

    measured = of([pair.share for pair in pairs])
    notes = {case.load(scale).note}
    if two_cores() is None:
        notes.add(NOTE)
    if abs(measured - share) > _CLOSE:
        notes.add(f"X is not {share:g}")
    if any(pair.within.best != pair.beside.best for pair in pairs):
        notes.add("not the same best epoch")
    return {
        "part": "effect",
        "case": f"{case}, {batches[0]} + {batches[1]} batches",
        "X": measured,
        "epoch_s": of([pair.within.total_s / scale.epochs for pair in pairs]),
        "speed_up": of([pair.within.total_s / pair.beside.total_s for pair in pairs]),
        "effect": of([pair.effect for pair in pairs]),
        "by_cpu": of([pair.effect_by_cpu for pair in pairs]),
        "train_x": of([sum(pair.beside.clock.train_s) / sum(pair.within.clock.train_s) for pair in pairs]),
        "val_x": of([median(pair.val_s) / median(pair.within.clock.val_s) for pair in pairs]),
        "first_s": of([pair.val_s[0] - median(pair.val_s) for pair in pairs]),
        "hook_ms": of([1000 * pair.hook_s for pair in pairs]),
        "start_s": of([pair.beside.clock.startup_s for pair in pairs]),
        "others": of([max(pair.within.other_cores, pair.beside.other_cores) for pair in pairs]),
        "note": "; ".join(sorted(notes - {""})),
    }
