"""Find a run's bottleneck from a config: ``python -m lightning_gnnopt.analyze`` or ``gnnopt-analyze``."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import rich
from hydra.errors import CompactHydraException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_gnnopt._cli import run
from lightning_gnnopt.analysis import BottleneckReport, GNNProfiler
from lightning_gnnopt.analysis.folders import make_writable
from lightning_gnnopt.analysis.records import Records, SweepRecord
from lightning_gnnopt.analysis.sweeps.sweep import graph_sweep, sampling_sweep
from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.parallel import PartitionDataModule
from lightning_gnnopt.train import build, build_members, build_model


def analyze(config: DictConfig) -> Path:
    """Run one analysis: fit under a profiler, sweep, print the report and write it.

    Whatever ends it early, what was recorded until then is written, and the error goes on.

    Args:
        config: A composed config of ``conf/analyze.yaml``.

    Returns:
        The folder of the report.

    Raises:
        ValueError: If the folder cannot be written to, no step was made, or a part refuses its arguments.
    """
    folder = _make_folder(config.output_dir)
    if config.trace and config.trace_batches < 1:
        raise ValueError(f"`trace_batches` must be at least 1 for a trace, but got {config.trace_batches}.")
    if config.seed is not None:
        L.seed_everything(config.seed, workers=True, verbose=False)
    profiler = _SilentProfiler(
        **config.profiler, limit=config.limit, trace_batches=config.trace_batches if config.trace else 0
    )
    datamodule, model = build(config)
    trainer = _make_trainer(config, profiler)
    try:
        if trainer.is_global_zero:
            _say("Fit under the profiler ...")
        trainer.fit(model, datamodule=datamodule)
        _check_steps(profiler.records)
        if trainer.is_global_zero:
            profiler.records.info["dataset"] = _name_of(datamodule)
            _sweep(config, datamodule, profiler.records, trainer)
    except BaseException:
        if trainer.is_global_zero and profiler.records.batches:
            profiler.records.info["dataset"] = _name_of(datamodule)
            _save_what_there_is(profiler, folder, trace=config.trace)
        raise
    if trainer.is_global_zero:
        report = _save(profiler, folder, trace=config.trace)
        rich.print(report)
        _say(f"Report: {folder / 'report.html'}")
        if config.trace:
            _say(f"Trace, for https://ui.perfetto.dev: {folder / 'trace.json'}")
    return folder


class _SilentProfiler(GNNProfiler):
    """Leaves it to the command to print the report, once it has its sweeps."""

    @override
    def describe(self) -> None:
        return


def _make_trainer(config: DictConfig, profiler: GNNProfiler) -> L.Trainer:
    callbacks = build_members(config.callbacks)
    asked_for = {  # or else Lightning would add its own
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
    }
    make = instantiate(config.trainer, _partial_=True, _convert_="all")
    trainer: L.Trainer = make(
        callbacks=callbacks, logger=build_members(config.logger) or False, profiler=profiler, **asked_for
    )
    return trainer


def _check_steps(records: Records) -> None:
    if not records.batches:
        raise ValueError(
            "The fit must make at least one training step to be analyzed, but made none. HINT: look at `epochs`,"
            " `max_steps` and `trainer.limit_train_batches`."
        )


def _sweep(
    config: DictConfig, datamodule: GraphDataModule | PartitionDataModule, records: Records, trainer: L.Trainer
) -> None:
    sweeps, notes = config.sweeps, records.info.setdefault("notes", [])
    if sweeps is None:
        return
    if isinstance(datamodule, PartitionDataModule):
        notes.append("Nothing was swept: processes that share a graph compute on all of it, not on sampled batches.")
        return
    sizes = list(sweeps.batch_sizes or [])
    if sizes and hasattr(datamodule.sampler, "seed_groups"):
        notes.append(
            f"Batch sizes were not swept: {type(datamodule.sampler).__name__} says itself which seeds stand in a batch."
        )
        sizes = []
    common: dict[str, Any] = {
        "full_batch": sweeps.full_batch,
        "batches": sweeps.batches,
        "device": trainer.strategy.root_device,
        "seed": config.seed or 0,
        "on_point": partial(_add_point, records),
    }
    make_model = partial(build_model, config.model)
    ran = False
    if sizes or sweeps.full_batch:
        _say("Sweep over batch sizes ...")
        sampling_sweep(datamodule, make_model, batch_sizes=sizes, peaks=records.peaks, **common)
        ran = True
    if sweeps.graph:
        _say("Sweep over graphs ...")
        loading = {
            "sampler": instantiate(config.sampler),
            "eval_mode": OmegaConf.select(config, "data.eval_mode") or "sampled",
        }
        graph_sweep(
            make_model,
            num_nodes=list(sweeps.num_nodes),
            avg_degrees=list(sweeps.avg_degrees),
            batch_size=datamodule.batch_size,
            **common,
            **loading,
        )
        ran = True
    if ran and trainer.precision != "32-true":
        notes.append(f"Sweeps were computed in 32 bits, the fit in {trainer.precision}.")


def _add_point(records: Records, point: SweepRecord) -> None:
    records.sweeps.append(point)


def _make_folder(output_dir: str) -> Path:
    """Find out now, not after the fit, that a report could not be written."""
    try:
        return make_writable(Path(output_dir))
    except OSError as error:
        raise _unwritable(output_dir, error) from error


def _save(profiler: GNNProfiler, folder: Path, *, trace: bool) -> BottleneckReport:
    report = profiler.report()
    try:
        report.save(folder)
        if trace:
            profiler.write_trace(folder / "trace.json")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return report


def _save_what_there_is(profiler: GNNProfiler, folder: Path, *, trace: bool) -> None:
    """Save after an error, which must be told whether this works or not."""
    try:
        _save(profiler, folder, trace=trace)
    except ValueError as error:
        _say(str(error))
    else:
        _say(f"What was recorded before the error: {folder / 'report.html'}")


def _unwritable(folder: Path | str, error: OSError) -> ValueError:
    return ValueError(
        f"`{folder}` must be a folder that can be written to, but is not: {error}."
        " HINT: choose another one with `hydra.run.dir=...` (`hydra.sweep.dir=...` with -m)."
    )


def _name_of(datamodule: GraphDataModule | PartitionDataModule) -> str:
    return str(getattr(datamodule.data, "name", "") or "")


def _say(line: str) -> None:
    rich.get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def rewrite(arguments: Sequence[str]) -> list[str]:
    """Put what people write into what Hydra reads: ``dataset=NAME`` is ``data=NAME``, ``--trace`` is ``trace=true``.

    Examples:
        >>> rewrite(["-m", "dataset=cora,uai", "model=gat", "--trace"])
        ['-m', 'data=cora,uai', 'model=gat', 'trace=true']
    """
    written = {"--trace": "trace=true"}
    return [
        f"data={argument.removeprefix('dataset=')}"
        if argument.startswith("dataset=")
        else written.get(argument, argument)
        for argument in arguments
    ]


@hydra.main(version_base="1.3", config_path="pkg://lightning_gnnopt.conf", config_name="analyze")
def _app(config: DictConfig) -> None:
    analyze(config)


def _run_app() -> None:
    try:
        _app()
    except OSError as error:
        # Before any job began it was Hydra that could not make its folder. A config that it does not find is an OSError
        # as well.
        began = any(frame.name == _app.__name__ for frame in traceback.extract_tb(error.__traceback__))
        if began or isinstance(error, CompactHydraException):
            raise
        raise _unwritable(error.filename or "the output folder", error) from error


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = rewrite(sys.argv[1:])
    # Lightning's own use of torch: nothing a user could act on
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*")
    run(_run_app)


if __name__ == "__main__":
    main()
