"""What tests of every room share."""

from __future__ import annotations

import os
from pathlib import Path

# Kernels of processors that differ ask for workspaces that differ; what tests count must not depend on where they run.
# Those with matrix tiles (AMX) take so much in bfloat16 that its bound is loose there. It is read when torch is loaded.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch

# The tensors of tests are tiny: a second thread would only be waited for, long where other work keeps the cores busy.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the interpreters that tests start

_HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def real_data_root() -> Path:
    """Folder of published graphs: GNNOPT_DATA, or ../shared/datasets beside the checkout; else the test skips."""
    for candidate in (os.environ.get("GNNOPT_DATA"), _HERE.parent.parent / "shared" / "datasets"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real graphs: GNNOPT_DATA is not set to a folder, and there is no ../shared/datasets")
