"""How much of sampling, transfers and computing runs at the same time.

Stages of known lengths go through `PrefetchLoader` one after the other (no worker, and each batch's transfer
and kernel are waited for before the next batch is sampled), and overlapped (one worker, and the consumer submits a
kernel and asks for the next batch at once, as a training step that does not read its loss; it waits for the device
after the last batch). Of ``N`` batches whose stages take the shares ``Y`` (sampling), ``Z`` (transfer) and
``1 - Y - Z`` (computing), an ideal pipeline fills once and then runs at its slowest stage::

    t_opt / t_base = 1 / N + (N - 1) / N * max(Y, Z, 1 - Y - Z)

The effect is the measured speed-up over that of the formula. Both runs are measured. The shares are the nominal ones
where a device is exact, and those measured in the run without overlap where it is not.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.backends import Backend
from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios
from benchmarks.loading_scale import LoadingScale
from benchmarks.timed_source import TimedSource
from lightning_gnnopt.loading import DevicePlacement, PrefetchLoader, SeedOrder

LARGEST_SUM = 0.9  # of the shares of sampling and transfers: the device computes, too


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How one batch's time is divided.

    Attributes:
        sample: Share of sampling.
        transfer: Share of the transfer.
    """

    sample: float
    transfer: float

    @property
    def compute(self) -> float:
        """Share of computing."""
        return 1 - self.sample - self.transfer


def ideal_ratio(shares: Shares, num_batches: int) -> float:
    """Time of an ideal pipeline over that of the stages one after the other.

    Examples:
        >>> ideal_ratio(Shares(sample=0.25, transfer=0.25), num_batches=2)
        0.75
    """
    return 1 / num_batches + (num_batches - 1) / num_batches * max(shares.sample, shares.transfer, shares.compute)


def grid(shares: Sequence[float]) -> list[Shares]:
    """Pair the shares of sampling with those of transfers, as far as something is left for computing.

    Examples:
        >>> [(point.sample, point.transfer) for point in grid([0.2, 0.7])]
        [(0.2, 0.2), (0.2, 0.7), (0.7, 0.2)]
    """
    pairs = itertools.product(shares, repeat=2)
    return [Shares(sample=y, transfer=z) for y, z in pairs if y + z <= LARGEST_SUM + 1e-9]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over all batches: its seconds, and the shares that its stages had."""

    seconds: float
    shares: Shares


def run_pass(point: Shares, backend: Backend, *, cycle_s: float, num_batches: int, num_workers: int) -> Pass:
    """Bring batches of one point of the grid to the device and compute on each.

    Args:
        point: How a batch's time is divided.
        backend: The device.
        cycle_s: Seconds that all stages of a batch take together.
        num_batches: Number of batches.
        num_workers: 0 runs one stage after the other, more overlaps them.
    """
    nbytes = backend.transfer_bytes(point.transfer * cycle_s)
    loader = PrefetchLoader(
        TimedSource(num_batches, sample_s=point.sample * cycle_s, nbytes=nbytes),
        SeedOrder(num_batches, 1),
        num_workers=num_workers,
        placement=DevicePlacement(backend.streams),
    )
    kernel = backend.kernel(point.compute * cycle_s)
    loader.warm_up()
    kernel()
    backend.synchronize()
    compute_s = 0.0
    start = time.perf_counter()
    for batch in loader:
        if num_workers == 0:
            backend.synchronize()  # for the transfer
            arrived_s = time.perf_counter()
            kernel()
            backend.synchronize()
            compute_s += time.perf_counter() - arrived_s
        else:
            kernel()
        del batch
    backend.synchronize()
    seconds = time.perf_counter() - start
    if backend.exact or num_workers:
        return Pass(seconds=seconds, shares=point)
    stages = loader.stats.sample_s, loader.stats.transfer_s, compute_s
    return Pass(seconds=seconds, shares=Shares(sample=stages[0] / sum(stages), transfer=stages[1] / sum(stages)))


def measure_effect(scale: LoadingScale, *, backend: Backend) -> Measured:
    """Measure the effect of overlap at each point of the grid.

    Args:
        scale: How much to measure.
        backend: The device.

    Returns:
        The least effect of all points, and a row per point.
    """
    points = grid(scale.shares)
    options: dict[str, Any] = {"backend": backend, "cycle_s": scale.cycle_s, "num_batches": scale.cycles}
    run_pass(points[0], **options, num_workers=1)  # compiles, and starts what is started once
    rows: list[Mapping[str, Cell]] = []
    effects, of_nominal = [], []
    for point in points:
        runs = alternate(
            {
                "base": functools.partial(run_pass, point, **options, num_workers=0),
                "overlapped": functools.partial(run_pass, point, **options, num_workers=1),
            },
            rounds=scale.grid_rounds,
            warmup=0,
        )
        speed_ups = ratios([run.seconds for run in runs["base"]], [run.seconds for run in runs["overlapped"]])
        ideals = [1 / ideal_ratio(run.shares, scale.cycles) for run in runs["base"]]
        ideal = median(ideals)
        effects.append(median(ratios(speed_ups, ideals)))
        ideal_s = scale.cycles * scale.cycle_s / ideal
        of_nominal.append(ideal_s / median([run.seconds for run in runs["overlapped"]]))
        rows.append(
            {
                "part": "effect of overlap",
                "side": f"sampling {point.sample:.1f}, transfer {point.transfer:.1f}, computing {point.compute:.1f}",
                "graph": f"none, {scale.cycles} batches of {1000 * scale.cycle_s:g} ms",
                "speed_up": median(speed_ups),
                "ideal": ideal,
                "effect": effects[-1],
            }
        )
    figures = [
        Figure(name="effect of overlap, the least of the grid", value=min(effects), unit="x", reach=0.97, sense=">="),
        Figure(name="effect of overlap, the mean of the grid", value=sum(effects) / len(effects), unit="x"),
    ]
    if backend.exact:
        name = "ideal time of nominal stages over the time taken, the least of the grid"
        figures.append(Figure(name=name, value=min(of_nominal), unit="x"))
    return figures, rows
