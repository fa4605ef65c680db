"""What tests of sweeps share."""

from __future__ import annotations

import pytest
from torch_geometric.data import Data

from lightning_gnnopt.datasets import load_dataset

from .sweeping import SEEN


@pytest.fixture(scope="module")
def data() -> Data:
    return load_dataset("digits-knn")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()
