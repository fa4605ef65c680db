"""What ``benchmarks.loading`` measures, on a CUDA device, where batches then are ready.

``--simulate`` takes the device made of threads in its place, so that the script can be tried anywhere; Lightning then
trains on the CPU, and PyG's batches, which do not know that device, stay in host memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing

import torch

from benchmarks.backends import Backend, CudaBackend, SimulatedBackend
from benchmarks.cache_rates import measure_caches
from benchmarks.harness import Measured, run_benchmark
from benchmarks.loading import GRID_BYTES_PER_S, joined
from benchmarks.loading_scale import FULL, QUICK, LoadingScale
from benchmarks.loading_sides import PEERS, products_like
from benchmarks.overlap import measure_effect
from benchmarks.preparation import measure_packing, measure_preparation
from benchmarks.pure_compute import measure_epoch
from benchmarks.training import measure_training

SIMULATE = "--simulate"


def measure_on(backend: Backend, scale: LoadingScale, *, grid_backend: Backend | None = None) -> Measured:
    """Measure everything on a device.

    Args:
        backend: The device.
        scale: How much to measure.
        grid_backend: Another one for the grid of overlap.
    """
    graph = products_like(scale.graph)
    parts = [
        measure_preparation(graph, scale, backend=backend),
        measure_effect(scale, backend=grid_backend or backend),
        measure_epoch(graph, scale, backend=backend),
        measure_training(graph, scale, backend=backend),
        measure_caches(scale, streams=backend.streams),
        measure_packing(graph, scale, backend=backend),
    ]
    figures, rows = joined(parts)
    return figures, [{"part": "device", "side": backend.name}, *rows]


def measure_cuda(quick: bool) -> Measured:
    """Measure on the current CUDA device."""
    with closing(CudaBackend()) as backend:
        return measure_on(backend, QUICK if quick else FULL)


def measure_simulated(quick: bool) -> Measured:
    """Measure on the simulated device."""
    with closing(SimulatedBackend()) as backend, closing(SimulatedBackend(bytes_per_s=GRID_BYTES_PER_S)) as slow:
        return measure_on(backend, QUICK if quick else FULL, grid_backend=slow)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit status; 2 where there is no device to measure on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    simulate = SIMULATE in arguments
    if simulate:
        arguments.remove(SIMULATE)
    elif not torch.cuda.is_available() and not {"-h", "--help"} & {*arguments}:
        sys.stderr.write(
            "`benchmarks.gpu` needs a CUDA device, but torch finds none."
            f" HINT: `python -m benchmarks.loading` measures without one; {SIMULATE} tries this script without one.\n"
        )
        return 2
    # The flag is a part of the command that the report names.
    name = f"gpu {SIMULATE}" if simulate else "gpu"
    description = f"{(__doc__ or '').split(chr(10))[0]} {SIMULATE} as the first argument: on a device made of threads."
    measure = measure_simulated if simulate else measure_cuda
    return run_benchmark(name, measure, description=description, peers=tuple(PEERS), argv=arguments)


if __name__ == "__main__":
    sys.exit(main())
