"""Are predictions of peak memory exact, and how long does it take to learn a step?

Each of the models trains on each of the graphs, with neighbour and with cluster batches; the latter are evaluated
through neighbours. What was predicted for a step is compared with the sum of what was held when it began, its batch,
and what a meter saw it add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Cell, Figure, Measured
from benchmarks.memory_runs import Run, Step, load_graph, make_datamodule, make_model, watched_fit
from benchmarks.memory_scale import SAMPLINGS, MemoryScale
from lightning_gnnopt.memory.prober import Stage
from lightning_gnnopt.studies.quiet import quiet

REACH, LARGEST_ERROR, LARGEST_SHORTAGE, RELEARN_S = 0.99, 0.005, 0.001, 1.0
STAGES: tuple[Stage, ...] = ("train", "val")
Changed = tuple[str, str, str, Mapping[str, Any]]
"""What changed, the graph, the model, and its options."""


def measure_exact(scale: MemoryScale) -> Measured:
    """Count the steps that were predicted to the byte.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per model, graph, sampling and stage.
    """
    rows: list[Mapping[str, Cell]] = []
    steps: list[Step] = []
    for name in scale.graphs:
        note = load_graph(name, scale.stand_in_nodes).note
        for model in scale.models:
            for sampling in SAMPLINGS:
                run = _run(name, model, sampling, scale, epochs=scale.exact_epochs)
                steps += run.steps
                for stage in STAGES:
                    setting = {"part": "exact", "graph": name, "model": model, "sampling": sampling, "stage": stage}
                    rows.append({**setting, **_row(run, stage, note)})
    return _figures(steps, "of unseen batches"), rows


def measure_relearning(scale: MemoryScale) -> Measured:
    """Take the time to learn a model that was changed, and look whether its predictions are exact again.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row per change.
    """
    first, *others = scale.graphs
    plain: Mapping[str, Any] = {"hidden_channels": scale.hidden}
    changes: list[Changed] = [
        ("nothing", first, "gat", plain),
        ("hidden x 2", first, "gat", {**plain, "hidden_channels": 2 * scale.hidden}),
        ("hidden x 4", first, "gat", {**plain, "hidden_channels": 4 * scale.hidden}),
        ("1 layer", first, "gat", {**plain, "num_layers": 1}),
        ("3 layers", first, "gat", {**plain, "num_layers": 3}),
        ("4 heads", first, "gat", {**plain, "heads": 4}),
        ("1 head", first, "gat", {**plain, "heads": 1}),
        *((f"dataset {name}", name, "gat", plain) for name in others),
        *((f"model {name}", first, name, plain) for name in scale.models if name != "gat"),
    ]
    seconds: list[float] = []
    steps: list[Step] = []
    rows: list[Mapping[str, Cell]] = []
    for change, name, model, options in changes:
        fanouts = _fanouts(scale, options.get("num_layers", 2))
        run = _run(name, model, "neighbor", scale, num_neighbors=fanouts, **options)
        learned = run.control.controller.learned if run.control.controller is not None else {}
        seconds.append(sum(of_stage.probe_s for of_stage in learned.values()))
        steps += run.steps
        rows.append(
            {
                "part": "relearn",
                "change": change,
                "graph": name,
                "model": model,
                "train_s": learned["train", 0].probe_s,
                "val_s": learned["val", 0].probe_s,
                "exact": exact_share(run.steps),
            }
        )
    figures = [
        Figure.of_runs(
            "time to learn a changed model, training and evaluation", seconds, unit="s", reach=RELEARN_S, sense="<="
        ),
        Figure(name="the longest of them", value=max(seconds), unit="s", reach=RELEARN_S, sense="<="),
    ]
    return [*figures, _exact(steps, "of batches of changed models")], rows


def exact_share(steps: Sequence[Step]) -> float | None:
    """Share of the predicted steps that took exactly as many bytes; None without any."""
    # Of what is fitted, rather than solved, a prediction can be right up to its last digits.
    exact = [round(step.predicted) == step.bytes for step in steps if step.predicted is not None]
    return sum(exact) / len(exact) if exact else None


def _run(
    name: str, model: str, sampling: str, scale: MemoryScale, *, epochs: int = 1, num_neighbors: Any = None, **kw: Any
) -> Run:
    options = {} if num_neighbors is None else {"num_neighbors": num_neighbors}
    datamodule = make_datamodule(load_graph(name, scale.stand_in_nodes), sampling, scale, **options)
    module = make_model(model, datamodule, **{"hidden_channels": scale.hidden, **kw})
    with quiet():
        return watched_fit(
            module,
            datamodule,
            epochs=epochs,
            trainer_limit_train_batches=scale.exact_batches,
            trainer_limit_val_batches=scale.exact_batches,
        )


def _fanouts(scale: MemoryScale, num_layers: int) -> list[int]:
    """One per layer."""
    return [*scale.fanouts, *scale.fanouts[-1:] * num_layers][:num_layers]


def _errors(steps: Sequence[Step]) -> list[float]:
    """Of each predicted step: predicted over measured, less one."""
    return [round(step.predicted) / step.bytes - 1 for step in steps if step.predicted is not None]


def _exact(steps: Sequence[Step], of: str) -> Figure:
    return Figure(
        name=f"share {of} predicted to the byte", value=exact_share(steps) or 0.0, unit="share", reach=REACH, sense=">="
    )


def _figures(steps: Sequence[Step], of: str) -> list[Figure]:
    errors = _errors(steps)
    largest, shortage = max(map(abs, errors), default=0.0), max((0.0 - error for error in errors), default=0.0)
    return [
        _exact(steps, of),
        Figure(name="largest error of all predictions", value=largest, unit="share", reach=LARGEST_ERROR, sense="<="),
        Figure(
            name="largest prediction below what was measured",
            value=max(shortage, 0.0),
            unit="share",
            reach=LARGEST_SHORTAGE,
            sense="<=",
        ),
        Figure(name="batches that were predicted", value=float(len(errors)), unit="batches"),
    ]


def _row(run: Run, stage: Stage, note: str) -> Mapping[str, Cell]:
    steps = [step for step in run.steps if step.stage == stage]
    errors = _errors(steps)
    controller = run.control.controller
    learned = None if controller is None else controller.learned.get((stage, 0))
    reason = "" if learned is None else learned.reason
    return {
        "batches": len(errors),
        "exact": exact_share(steps),
        "largest_error": max(map(abs, errors), default=None),
        "worst_under": max((0.0 - error for error in errors), default=None),
        "probe_s": None if learned is None else learned.probe_s,
        "peak_mib": max(step.bytes for step in steps) / 2**20 if steps else None,
        "note": "; ".join(filter(None, [note, reason])),
    }
