"""What tests of validation share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .runs import our_threads
from .supervised import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    made: list[Setting] = []

    def make(scores: dict[int, Any], **options: Any) -> Setting:
        made.append(Setting(tmp_path, scores, **options))
        made[-1].supervisor.start()
        return made[-1]

    yield make
    for each in made:
        each.supervisor.stop()
        each.supervisor.stop()
        assert all(child.is_stopped.is_set() for child in each.made)
    assert our_threads() == []
    assert list(tmp_path.rglob("*.tmp")) == []
