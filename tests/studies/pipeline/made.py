"""Fits and cells of the pipeline study, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_gnnopt.studies.cells import Cell
from lightning_gnnopt.studies.pipeline.fits import Fit
from lightning_gnnopt.studies.pipeline.theory import Stages

STAGES = Stages(
    train_prepare_s=1.0, train_compute_s=3.0, val_prepare_s=0.5, val_compute_s=1.5, train_batches=4, val_batches=2
)


def made_fit(epochs_s: Sequence[float] = (9.0, 6.0, 6.0), *, beside: bool = False, **changed: Any) -> Fit:
    """Make a fit whose steady epochs are all but the first."""
    options: dict[str, Any] = {
        "fit_s": sum(epochs_s),
        "epochs_s": tuple(epochs_s),
        "steady_s": tuple(epochs_s[1:]),
        "stages": None if beside else STAGES,
        "cpu_s": 5.5,
        "startup_s": 5.0 if beside else 0.0,
        "workers": (1, 0),
        "losses": "abc",
        "val_losses": (2.0, 1.0),
        "last_loss": 0.5,
    }
    return Fit(**{**options, **changed})


def made_cell(
    data: str = "g",
    model: str = "gcn",
    sampler: str = "neighbor",
    *,
    prefetch: float = 1.2,
    beside: float = 1.3,
    both: float = 1.5,
    theory: float = 1.5,
    edges: int = 1000,
    error: str = "",
    equal: bool = True,
    varied: str = "",
    **setting: Any,
) -> Cell:
    """Make a cell from the speed-ups of its sides."""
    config = {"data": data, "model": model, "sampler": sampler, "batch_size": 128, "hidden": 64, "varied": varied}
    config |= setting
    name = f"{data}/{model}/{sampler}-{config['batch_size']}-{config['hidden']}"
    if error:
        return Cell(name, config, {}, error)
    sides: dict[str, Any] = {"baseline": {"epoch_s": 6.0, "fit_s": 40.0, "startup_s": 0.0, "steady_epochs": 5}}
    for side, speedup in (("prefetch", prefetch), ("async", beside), ("both", both)):
        sides[side] = {
            "epoch_s": 6.0 / speedup,
            "fit_s": 40.0,
            "startup_s": 0.0 if side == "prefetch" else 5.0,
            "steady_epochs": 3,
            "workers": [0 if side == "prefetch" else 2, 1],
            "speedup": speedup,
            "theory": theory,
            "effect": speedup / theory,
            "gain_share": None,
            "fit_speedup": 1.0,
            "fit_theory": theory,
        }
    result = {
        "graph": {"nodes": 100, "edges": edges},
        "baseline": "our loader, 0 workers",
        "pass_s": 3.0,
        "stages": {"train_prepare_s": 1.0, "train_compute_s": 3.0, "val_prepare_s": 0.5, "val_compute_s": 1.5,
                   "train_batches": 4, "val_batches": 2},
        "sides": sides,
        "losses_equal": equal,
        "val_losses_equal": True,
        "other_cores": 0.25,
        "rounds": [{}, {}],
    }  # fmt: skip
    return Cell(name, config, result)
