"""The command line as a user meets it: exit status, one sentence, no page of traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException, InstantiationException

from lightning_gnnopt._cli import explain, run
from lightning_gnnopt.sampling import NeighborSampler, Topology

MISTAKES = {
    "unknown_key": ("trainer.max_epoch=3", "Unknown key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
    "unknown_top_level_key": ("sed=3", "Unknown key 'sed'. Did you mean 'seed'?"),
    "unknown_dataset": ("data=amazonphoto", "Unknown data 'amazonphoto'. Did you mean 'amazon-photo'?"),
    "unknown_dataset_name": ("data.name=corra", "Unknown dataset 'corra'. Did you mean 'cora'?"),
    "unknown_model": ("model=gatt", "Unknown model 'gatt'. Did you mean 'gat'?"),
    "unknown_net": ("model.net=gatt", "Unknown model 'gatt'. Did you mean 'gat'?"),
    "unknown_sampler": ("sampler=neighbour", "Unknown sampler 'neighbour'. Did you mean 'neighbor'?"),
    "unknown_experiment": ("experiment=corra", "Unknown experiment 'corra'. Did you mean 'cora'?"),
    "unknown_model_option": ("+model.hiden_channels=3", "'hiden_channels'. Did you mean 'hidden_channels'?"),
    "unknown_data_option": ("+data.batchsize=3", "unexpected keyword argument 'batchsize'"),
    "too_few_fan_outs": (
        "sampler.num_neighbors=[5]",
        "each of the model's 2 layers, but samples 1 hop",
    ),
    "batch_size": ("data.batch_size=0", "`batch_size` must be at least 1, but got 0."),
    "dropout": ("model.dropout=2", "`dropout` must be at least 0 and below 1, but got 2"),
    "fan_out": ("sampler.num_neighbors=[5,0]", "positive or -1 (all neighbours), but got 0 in [5, 0]."),
    "unavailable": ("data=flickr data.root=. +data.options.download=false", "adj_full.npz"),
}


def gnnopt_train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightning_gnnopt.train", *arguments],
        cwd=cwd,
        env={**_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    kept = {name: value for name, value in os.environ.items() if name not in ("GNNOPT_DATA", "HYDRA_FULL_ERROR")}
    return {**kept, "PYTHONPATH": root}


@pytest.mark.slow
def test_mistakes_end_with_one_sentence(tmp_path: Path) -> None:
    """All in one interpreter, since each start costs seconds; every mistake goes through the real `main`."""
    script = """
import sys
from lightning_gnnopt.train import main
for line in open("mistakes.txt").read().splitlines():
    sys.argv = ["gnnopt-train", *line.split(), "hydra.run.dir=out"]
    print("BEGIN", line, file=sys.stderr)
    try:
        main()
    except SystemExit as stop:
        print("EXIT", stop.code, file=sys.stderr)
"""
    (tmp_path / "mistakes.txt").write_text("\n".join(line for line, _ in MISTAKES.values()))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "Traceback" not in done.stderr
    answers = done.stderr.split("BEGIN ")[1:]
    assert len(answers) == len(MISTAKES)
    for answer, (line, expected) in zip(answers, MISTAKES.values(), strict=True):
        assert answer.startswith(line)
        assert expected in answer
        assert "EXIT 1" in answer
        assert answer.count("\nError: ") == 1


@pytest.mark.slow
def test_full_traceback_on_request(tmp_path: Path) -> None:
    done = gnnopt_train("data.batch_size=0", "hydra.run.dir=out", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "seeds.py" in done.stderr


@pytest.mark.slow
def test_help_and_sweep_from_another_folder(tmp_path: Path) -> None:
    told = gnnopt_train("--help", cwd=tmp_path)
    assert told.returncode == 0
    assert "Train a graph neural network on sampled batches of a graph." in told.stdout
    assert "model: _base, gaan, gat, gcn, ggnn, sage" in told.stdout
    swept = gnnopt_train("-m", "model=gcn,sage", "trainer.fast_dev_run=true", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    assert swept.stdout.count("Run summary") == 2


@pytest.mark.slow
def test_other_applications_can_choose_from_our_groups(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 1\noutput_dir: out\nmine: 3\n")
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base='1.3', config_path='conf', config_name='config')\n"
        "def main(config):\n"
        "    print(config.mine, config.data.name, config.model.net, config.trainer.max_epochs)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py", "+data=cora", "+model=gat", "+trainer=cpu"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "cora", "gat", "20"]


def test_a_fault_in_the_program_keeps_its_traceback() -> None:
    def app() -> None:
        raise ValueError("not raised by the package")

    with pytest.raises(ValueError, match="not raised by the package"):
        run(app)


def test_hydra_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def app() -> None:
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        NeighborSampler(Topology.__new__(Topology), [])

    with pytest.raises(SystemExit) as stop:
        run(app)
    assert stop.value.code == 1
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert capsys.readouterr().err == (
        "Error: `num_neighbors` must hold one fan-out per hop, but it is empty."
        " HINT: [15, 10] samples 15 neighbours of each seed and 10 of each of those.\n"
        "(Set HYDRA_FULL_ERROR=1 for the traceback.)\n"
    )


def test_explain_looks_through_instantiation() -> None:
    outer = InstantiationException("Error in call to target")
    outer.__cause__ = TypeError("f() got an unexpected keyword argument 'x'")
    assert (
        explain(outer) == "f() got an unexpected keyword argument 'x'. HINT: see which keys there are with `--cfg job`."
    )


def test_explain_puts_hydras_lines_into_one() -> None:
    assert explain(CompactHydraException("one\n\n two:\n three?")) == "one. two: three?"
