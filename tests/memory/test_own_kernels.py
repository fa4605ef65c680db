"""What must hold with the kernels that this very processor chooses; other tests ask for those that most have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FITS = """
import sys
import torch
torch.set_num_threads(1)
import tests.memory.test_workspaces as tests
name, hidden = sys.argv[1], int(sys.argv[2])
recorder = tests.Recorder()
sizes = dict(in_channels=tests.FEATURES, out_channels=tests.CLASSES, hidden_channels=hidden, dropout=0.0)
tests.fit(
    tests.NodeClassifier(name, **sizes), tests.make_datamodule(), recorder,
    precision="bf16-mixed", limit_train_batches=1, limit_val_batches=0, max_epochs=1,
)
assert len(recorder.pairs) == 17
bad = [pair for pair in recorder.pairs if not pair[0] <= pair[1] <= pair[0] + recorder.most]
print("bad:", bad)
"""


@pytest.mark.parametrize(("name", "hidden"), [("sage", "64"), ("ggnn", "16")])
def test_bf16_is_never_under_and_at_most_by_a_workspace_above(name: str, hidden: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _FITS, name, hidden],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "bad: []"
