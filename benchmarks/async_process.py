"""What the validation process takes: the time until it is up, and memory of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.async_runs import Case, fit
from benchmarks.async_scale import AsyncScale
from benchmarks.harness import Cell, Figure, Measured
from benchmarks.memory_runs import sum_bytes

_BARE = """
import json, os
import lightning_gnnopt.evaluation.worker
from benchmarks.async_clocks import read_memory
print(json.dumps(read_memory(os.getpid())))
"""
_MIB = 2**20
_ALL = 1_000_000  # features


def measure_process(scale: AsyncScale) -> Measured:
    """Start the process on a graph with all of its features, beside an interpreter that has only imported the package.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per process. Memory is left out where the system does not tell it.
    """
    whole = replace(scale, features=_ALL)
    bare = json.loads(subprocess.run([sys.executable, "-c", _BARE], check=True, capture_output=True).stdout)
    rows: list[Mapping[str, Cell]] = [{"part": "process", "side": "bare interpreter", **_mib(bare)}]
    figures = []
    for sampling in scale.samplings:
        case = Case(graph=scale.graphs[0], model=scale.models[0], sampling=sampling)
        run = fit(*case.make(whole, 2, 2), epochs=2, beside=True)
        graph_mib = sum_bytes(case.load(whole).data.to_dict().values()) / _MIB
        figures.append(Figure(name=f"start-up of the process, {sampling}", value=run.clock.startup_s, unit="s"))
        if bare and run.clock.memory:
            own_mib = (run.clock.memory["private"] - bare["private"]) / _MIB
            name = f"private memory beyond a bare interpreter's, {sampling}; the graph has {graph_mib:.0f} MiB"
            figures.append(Figure(name=name, value=own_mib, unit="MiB"))
        rows.append(
            {
                "part": "process",
                "side": str(case),
                **_mib(run.clock.memory),
                "graph_mib": graph_mib,
                "startup_s": run.clock.startup_s,
                "start_ms": 1000 * run.validation.start_s if run.validation is not None else None,
                "other_cores": run.other_cores,
            }
        )
    return figures, rows


def _mib(memory: Mapping[str, int]) -> dict[str, Cell]:
    return {f"{name}_mib": round(amount / _MIB, 1) for name, amount in memory.items()}
