"""The analysis, run inside the test process, and its command line as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch.distributed as dist
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from lightning_gnnopt import GraphDataModule, analyze
from lightning_gnnopt.analysis import BottleneckReport
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.models import MODELS
from tests.test_cli import _environment

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
SMALL = (
    "trainer=cpu",
    "epochs=2",
    "data.batch_size=256",
    "data.num_workers=0",
    "sampler.num_neighbors=[4,4]",
    "model.hidden_channels=8",
    "sweeps.batch_sizes=[64]",
    "sweeps.batches=2",
)
RunJob = Callable[..., Path]


class FailAt(L.Callback):
    """Ends the fit in a step."""

    def __init__(self, step: int, *, error: str = "the step's own") -> None:
        self.step, self.error = step, error

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError(self.error)


def without_masks(name: str, **_: Any) -> GraphDataModule:
    data = load_dataset(name)
    del data.train_mask
    return GraphDataModule(data, num_neighbors=[4, 4])


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        return compose("analyze", list(overrides))


@pytest.fixture
def job(tmp_path: Path) -> RunJob:
    def run(*overrides: str, out: str = "out") -> Path:
        return analyze.analyze(composed(*SMALL, f"output_dir={tmp_path / out}", *overrides))

    return run


def test_report_records_and_figures_are_written_and_told(job: RunJob, capsys: pytest.CaptureFixture[str]) -> None:
    folder = job("limit=1GiB", "profiler.memory_every=2")
    printed = capsys.readouterr().out
    report = BottleneckReport.load(folder)
    records = report.records
    assert len(records.batches) == records.info["steps"] == 8  # of 898 nodes four batches, twice
    assert [batch.batch for batch in records.batches if batch.peak_bytes is not None] == [
        7
    ]  # of 3 and 6 each tensor was followed
    assert [batch.batch for batch in records.batches if batch.timed] == [4, 5]
    assert [(validation.batch, validation.beside) for validation in records.validations] == [(4, False), (8, False)]
    assert [(point.sampler, point.value, point.error) for point in records.sweeps] == [
        ("NeighborSampler", 64, ""),
        ("full", 898, ""),
    ]
    info = records.info
    assert (info["dataset"], info["model"], info["device"]) == ("digits-knn", "GraphSAGE", "cpu")
    assert info["limit_bytes"] == 2**30
    assert info["notes"] == []
    assert sorted(path.name for path in folder.iterdir()) == ["figures", "records", "report.html"]
    assert {path.stem for path in (folder / "figures").iterdir()} == set(report.available)
    assert "sampling_sweep" in report.available
    assert "GraphSAGE on digits-knn" in (folder / "report.html").read_text()
    assert report.verdict in " ".join(printed.split())
    assert printed.count("Phases of a training step") == 1
    assert printed.splitlines()[-1] == f"Report: {folder / 'report.html'}"


def test_sweeps_are_of_the_configs_own_sampler_and_batches(job: RunJob) -> None:
    folder = job("sampler=labor", "sweeps.full_batch=false", "seed=7")
    (point,) = Records.load(folder / "records").sweeps
    loader = GraphDataModule(
        load_dataset("digits-knn"), sampler="labor", num_neighbors=[4, 4], batch_size=64, seed=7, drop_last=True
    ).train_dataloader()
    batches = [batch for batch, _ in zip(loader, range(2), strict=False)]
    assert point.sampler == "LaborSampler"
    assert point.nodes == sum(batch.num_nodes for batch in batches) / 2
    assert point.edges == sum(batch.num_edges for batch in batches) / 2


def test_graphs_are_swept_if_asked_for(job: RunJob) -> None:
    folder = job("sweeps.graph=true", "sweeps.num_nodes=[500]", "sweeps.avg_degrees=[2,3]",
                 "sweeps.batch_sizes=null", "sweeps.full_batch=false")  # fmt: skip
    points = Records.load(folder / "records").sweeps
    assert [(point.sweep, point.value, point.graph_nodes, point.graph_edges) for point in points] == [
        ("num_nodes", 500, 500, 8000),
        ("avg_degree", 2, 16384, 32768),
        ("avg_degree", 3, 16384, 49152),
    ]


@pytest.mark.parametrize("sweeps", ["sweeps=null", "sweeps={batch_sizes: null, full_batch: false, graph: false}"])
def test_no_sweep(job: RunJob, sweeps: str) -> None:
    overrides = [sweeps] if sweeps == "sweeps=null" else ["sweeps.batch_sizes=null", "sweeps.full_batch=false"]
    assert Records.load(job(*overrides) / "records").sweeps == []


def test_clusters_are_not_swept_by_batch_size(tmp_path: Path) -> None:
    small = [override for override in SMALL if not override.startswith("sampler.")]
    clusters = ("sampler=cluster", "sampler.method=fennel", "sampler.num_parts=10")
    analyze.analyze(composed(*small, *clusters, f"output_dir={tmp_path}"))
    records = Records.load(tmp_path / "records")
    assert [point.sampler for point in records.sweeps] == ["full"]
    assert records.info["notes"] == [
        "Batch sizes were not swept: ClusterSampler says itself which seeds stand in a batch."
    ]


def test_another_precision_is_noted(job: RunJob) -> None:
    (note,) = Records.load(job("trainer.precision=bf16-mixed") / "records").info["notes"]
    assert note == "Sweeps were computed in 32 bits, the fit in bf16-mixed."


def test_trace(job: RunJob) -> None:
    folder = job("trace=true", "trace_batches=2", "data.num_workers=1", "sweeps=null")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    steps = {event["args"].get("batch") for event in events if event["ph"] == "X" and event["name"] == "forward"}
    assert len(steps) == 2
    assert {"sample", "slice"} <= {event["name"] for event in events}


def test_a_trace_of_no_step(job: RunJob) -> None:
    with pytest.raises(ValueError, match="`trace_batches` must be at least 1 for a trace, but got 0"):
        job("trace=true", "trace_batches=0")


def test_a_step_that_raises_leaves_the_records_before_it(
    job: RunJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail = "+callbacks.fail={_target_: tests.test_analyze.FailAt, step: 6}"
    with pytest.raises(RuntimeError, match="the step's own"):
        job(fail)
    records = Records.load(tmp_path / "out" / "records")
    assert [batch.batch for batch in records.batches] == [0, 1, 2, 3, 4]  # the one that raised is dropped
    assert records.info["notes"] == ["The fit ended early, in step 5: RuntimeError: the step's own"]
    assert records.info["dataset"] == "digits-knn"
    assert records.sweeps == []
    assert (tmp_path / "out" / "report.html").is_file()
    told = capsys.readouterr().out
    assert f"What was recorded before the error: {tmp_path / 'out' / 'report.html'}" in told


def test_a_sweep_that_raises_leaves_the_points_before_it(
    job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no graph")

    monkeypatch.setattr(analyze, "graph_sweep", fails)
    with pytest.raises(RuntimeError, match="no graph"):
        job("sweeps.graph=true")
    assert len(Records.load(tmp_path / "out" / "records").sweeps) == 2


def test_an_error_is_told_even_if_nothing_can_be_written_then(
    job: RunJob, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BottleneckReport, "save", full)
    with pytest.raises(RuntimeError, match="the step's own"):
        job("+callbacks.fail={_target_: tests.test_analyze.FailAt, step: 6}")
    assert "No space left on device. HINT: choose another one with `hydra.run.dir=...`" in capsys.readouterr().out


def test_a_report_that_cannot_be_written(job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(BottleneckReport, "save", full)
    with pytest.raises(ValueError, match=r"must be a folder that can be written to, but is not: .*No space left"):
        job("sweeps=null")


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_fit(job: RunJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out` must be a folder that can be written to, but is not: .*Not a dir"):
        job("+callbacks.fail={_target_: tests.test_analyze.FailAt, step: 1}", out="file/out")


@pytest.mark.parametrize("none", ["trainer.limit_train_batches=0", "epochs=0"])
def test_a_fit_without_a_step(job: RunJob, tmp_path: Path, none: str) -> None:
    with pytest.raises(ValueError, match="must make at least one training step to be analyzed, but made none"):
        job(none)
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_graph_without_training_nodes(job: RunJob) -> None:
    with pytest.raises(ValueError, match="`data` must hold `train_mask` to train on, but it has none"):
        job("data._target_=tests.test_analyze.without_masks")


def test_steps_that_are_too_few_to_be_timed(job: RunJob) -> None:
    report = BottleneckReport.load(job("max_steps=2"))
    assert len(report.records.batches) == 2
    assert report.facts.timed_steps == 0


def test_a_whole_graph_is_analyzed_and_nothing_is_swept(
    job: RunJob, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(dist.destroy_process_group)  # as DDP's, it stays when a fit has ended
    folder = job("trainer=halo", "trainer.devices=1", f"data.folder={tmp_path / 'parts'}", "epochs=8")
    records = Records.load(folder / "records")
    assert len(records.batches) == 8  # an epoch is one step
    assert records.info["dataset"] == "digits-knn"
    assert records.sweeps == []
    assert records.info["notes"] == [
        "Nothing was swept: processes that share a graph compute on all of it, not on sampled batches."
    ]


@pytest.mark.slow
def test_the_run_with_its_callbacks_is_analyzed(job: RunJob) -> None:
    records = Records.load(job("callbacks=async_validation", "epochs=3", "sweeps=null") / "records")
    assert records.info["async_validation"] is True
    assert records.validations
    assert all(validation.beside for validation in records.validations)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gnnopt")]


def test_callbacks_that_lightning_wants_to_be_told_of(job: RunJob, tmp_path: Path) -> None:
    job("callbacks=default", "sweeps=null")
    assert list((tmp_path / "out" / "checkpoints").glob("best-*.ckpt"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_recipe_is_analyzed_but_does_not_say_for_how_long(experiment: str) -> None:
    config = composed(f"experiment={experiment}", "output_dir=out")
    OmegaConf.resolve(config)
    with initialize_config_module("lightning_gnnopt.conf", version_base="1.3"):
        recipe = compose("train", [f"experiment={experiment}", "output_dir=out"])
    for group in ("data", "model", "sampler"):
        assert config[group] == recipe[group]
    names_callbacks = "/callbacks:" in (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text()
    built = {name for name, callback in config.callbacks.items() if callback is not None}  # null: left out
    assert built == ({name for name, callback in recipe.callbacks.items() if callback} if names_callbacks else set())
    assert (config.task_name, config.trainer.max_epochs, config.trainer.max_steps) == ("analyze", 5, -1)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_config_composes_with_every_model(model: str) -> None:
    config = composed(f"model={model}", "epochs=7", "max_steps=9", "output_dir=out")
    assert (config.model.net, config.trainer.max_epochs, config.trainer.max_steps) == (model, 7, 9)
    assert (dict(config.callbacks), dict(config.logger), config.trainer.enable_progress_bar) == ({}, {}, False)


def test_arguments_as_people_write_them() -> None:
    given = ["-m", "dataset=cora,uai", "--trace", "model=gat", "+dataset=x", "--cfg", "job"]
    written = ["-m", "data=cora,uai", "trace=true", "model=gat", "+dataset=x", "--cfg", "job"]
    assert analyze.rewrite(given) == written


MISTAKES = {
    "dataset": ("dataset=amazonphoto", "Unknown data 'amazonphoto'. Did you mean 'amazon-photo'?"),
    "key": ("epoch=3", "Unknown key 'epoch'. Did you mean 'epochs'?"),
    "limit": ("limit=6XB", "`limit` must be a number of bytes, but got '6XB'."),
    "profiler": ("profiler.skip_batches=-1", "`skip_batches` must be 0 or more, but got -1."),
    "sweep": ("sweeps.batch_sizes=[0] epochs=1", "`batch_sizes` must be at least 1, but got 0."),
    "steps": ("epochs=0", "must make at least one training step to be analyzed"),
    "folder": ("hydra.run.dir=file/out", "must be a folder that can be written to, but is not"),
    "sweep_folder": ("-m model=gcn,sage hydra.sweep.dir=file/out", "must be a folder that can be written to"),
}


def interpreter(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_mistakes_end_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mistakes.txt").write_text("\n".join(line for line, _ in MISTAKES.values()))
    (tmp_path / "file").write_text("")
    done = interpreter(
        """
import sys
from lightning_gnnopt.analyze import main
for line in open("mistakes.txt").read().splitlines():
    sys.argv = ["gnnopt-analyze", *([] if ".dir" in line else ["hydra.run.dir=out"]), *line.split()]
    print("BEGIN", line, file=sys.stderr)
    try:
        main()
    except SystemExit as stop:
        print("EXIT", stop.code, file=sys.stderr)
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    answers = done.stderr.split("BEGIN ")[1:]
    assert len(answers) == len(MISTAKES)
    for answer, (line, expected) in zip(answers, MISTAKES.values(), strict=True):
        assert answer.startswith(line)
        assert expected in answer
        assert "EXIT 1" in answer
        assert answer.count("\nError: ") == 1


@pytest.mark.slow
def test_a_sweep_over_models_leaves_no_thread(tmp_path: Path) -> None:
    overrides = [argument for argument in SMALL if not argument.startswith("data.num_workers")]
    done = interpreter(
        f"""
import sys, threading
from lightning_gnnopt.analyze import main
sys.argv = ["gnnopt-analyze", "-m", "model=gcn,gat", "dataset=digits-knn", "--trace", "hydra.sweep.dir=all",
            *{overrides!r}, "model.hidden_channels=16"]
main()
print("THREADS", [thread.name for thread in threading.enumerate() if thread.name.startswith("gnnopt")])
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "THREADS []" in done.stdout
    folders = sorted(path for path in (tmp_path / "all").iterdir() if path.is_dir())
    assert [Records.load(folder / "records").info["model"] for folder in folders] == ["GCN", "GAT"]
    assert all((folder / "trace.json").is_file() and (folder / "report.html").is_file() for folder in folders)
    assert done.stdout.count("Report: ") == 2


@pytest.mark.slow
def test_help_and_a_fault_that_keeps_its_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_gnnopt.analyze"]
    told = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert told.returncode == 0
    assert "Find out where the time and the memory of training a graph neural network go." in told.stdout
    assert "gnnopt-analyze model=gat dataset=amazon-computers" in told.stdout
    fail = "+callbacks.fail={_target_: tests.test_analyze.FailAt, step: 6}"
    done = subprocess.run(
        [*command, *SMALL, fail, "hydra.run.dir=out"],
        cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: the step's own" in done.stderr
    assert len(Records.load(tmp_path / "out" / "records").batches) == 5
