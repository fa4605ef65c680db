from __future__ import annotations

import pytest
import torch

from tests.memory.fake_cuda import FakeCuda


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """What `torch.cuda` counts, without a GPU."""
    fake = FakeCuda()
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    return fake
