from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from lightning_gnnopt.memory import budget as budget_module
from lightning_gnnopt.memory.budget import read_budget
from tests.memory.fake_cuda import FakeCuda

GIB = 2**30
UNLIMITED_V1 = 9223372036854771712  # what version 1 says where there is no limit


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 64 GiB, of which 40 are available, without control groups."""
    monkeypatch.setattr(budget_module, "_ROOT", tmp_path)
    memory = SimpleNamespace(total=64 * GIB, available=40 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return tmp_path


def write(root: Path, files: dict[str, Any]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def version_2(root: Path, path: str, **files: Any) -> None:
    folder = f"sys/fs/cgroup{path}".rstrip("/")
    write(root, {f"{folder}/{name.replace('_', '.', 1)}": text for name, text in files.items()})


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ("6GiB", 6 * GIB),
        (" 1.5 gib ", 3 * GIB // 2),
        ("1000", 1000),
        (4096, 4096),
        (np.int64(4096), 4096),
        (4096.0, 4096),
        (1, 1),
        (1.0, 64 * GIB),
        (0.25, 16 * GIB),
        (np.float32(0.25), 16 * GIB),
        (1e-15, 1),
        (64 * GIB, 64 * GIB),
    ],
)
def test_numbers_sizes_and_shares(root: Path, budget: Any, expected: int) -> None:
    assert read_budget(budget, "cpu") == expected


@pytest.mark.parametrize("budget", [0, -1, -0.5, 0.0, "-6GiB", "0", "0.5 B", -(2**40), "0.9"])
def test_not_positive(root: Path, budget: Any) -> None:
    with pytest.raises(ValueError, match=r"^`budget` must be more than 0 bytes, but got .*\. HINT: ") as error:
        read_budget(budget, "cpu")
    assert repr(budget) in str(error.value)


@pytest.mark.parametrize("budget", [True, False, math.nan, math.inf, -math.inf, "much", "6 Gig", "", None, [1], 1j])
def test_not_a_budget(root: Path, budget: Any) -> None:
    with pytest.raises(ValueError, match=r"^`budget` must be 'auto', a size such as '6GiB', .*\. HINT: ") as error:
        read_budget(budget, "cpu")
    assert f"but got {budget!r}." in str(error.value)


@pytest.mark.parametrize("budget", [1.5, 90.5])
def test_a_share_above_one(root: Path, budget: float) -> None:
    with pytest.raises(ValueError, match=rf"share of at most 1\.0 or a whole number .* got {budget}\. HINT: 0\.9 for"):
        read_budget(budget, "cpu")


def test_more_than_the_machine_has(root: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"at most the 68,719,476,736 bytes \(64\.0 GiB\) of cpu, but got '1TiB', 1,099,511,627,776 bytes\. HINT",
    ):
        read_budget("1TiB", "cpu")


def test_auto_without_control_groups(root: Path) -> None:
    assert read_budget("auto", "cpu") == 36 * GIB
    assert read_budget(" Auto", "cpu", held_bytes=10 * GIB) == 45 * GIB


def test_version_2_limits_and_its_page_cache_can_be_dropped(root: Path) -> None:
    write(root, {"proc/self/cgroup": "0::/job"})
    version_2(root, "/job", memory_max=20 * GIB, memory_high="max", memory_current=12 * GIB)
    version_2(root, "/job", memory_stat=f"anon 5\nfile 7\ninactive_file {2 * GIB}\nactive_file 9")
    assert read_budget("auto", "cpu") == 9 * GIB  # 90 % of 20 - (12 - 2)
    assert read_budget("auto", "cpu", held_bytes=10 * GIB) == 18 * GIB
    assert read_budget(0.5, "cpu") == 10 * GIB
    with pytest.raises(ValueError, match=r"at most the 21,474,836,480 bytes"):
        read_budget("21GiB", "cpu")


def test_the_tightest_group_above_counts(root: Path) -> None:
    write(root, {"proc/self/cgroup": "0::/slurm/job/step"})
    version_2(root, "/slurm/job/step", memory_max="max", memory_high="max", memory_current=GIB)
    version_2(root, "/slurm/job", memory_max=30 * GIB, memory_high=25 * GIB, memory_current=5 * GIB)
    version_2(root, "/slurm", memory_max=50 * GIB, memory_high="max", memory_current=40 * GIB)
    assert read_budget("auto", "cpu") == 9 * GIB  # 50 - 40
    assert read_budget(1.0, "cpu") == 25 * GIB


def test_version_1(root: Path) -> None:
    folder = "sys/fs/cgroup/memory/docker/abc/memory"
    write(
        root,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/",
            f"{folder}.limit_in_bytes": 8 * GIB,
            f"{folder}.usage_in_bytes": 4 * GIB,
            f"{folder}.stat": f"inactive_file 3\ntotal_inactive_file {GIB}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 30 * GIB,
        },
    )
    assert read_budget("auto", "cpu") == int(5 * GIB * 0.9)
    assert read_budget(1.0, "cpu") == 8 * GIB


def test_a_container_that_sees_only_its_own_group(root: Path) -> None:
    """/proc names the group by its path on the host; the mount's root is the group itself."""
    write(
        root,
        {
            "proc/self/cgroup": "4:memory:/docker/abc",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 8 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 3 * GIB,
        },
    )
    assert read_budget(1.0, "cpu") == 8 * GIB
    assert read_budget("auto", "cpu") == int(5 * GIB * 0.9)


def test_version_1_without_a_limit(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "4:memory:/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": 30 * GIB,
        },
    )
    assert read_budget("auto", "cpu") == 36 * GIB
    assert read_budget(1.0, "cpu") == 64 * GIB


def test_nothing_left(root: Path) -> None:
    write(root, {"proc/self/cgroup": "0::/"})
    version_2(root, "", memory_max=GIB, memory_current=2 * GIB)
    with pytest.raises(ValueError, match=r"must find memory to use on cpu, but 0 bytes can be had .*\. HINT: end what"):
        read_budget("auto", "cpu")


def test_on_this_machine() -> None:
    assert 0 < read_budget("auto", "cpu") < read_budget(1.0, "cpu") <= psutil.virtual_memory().total


def test_auto_on_an_accelerator(fake_cuda: FakeCuda) -> None:
    fake_cuda.free_bytes, fake_cuda.total_bytes = 6 * GIB, 8 * GIB
    fake_cuda.allocate(GIB)
    assert read_budget("auto", "cuda:0") == 7 * GIB - 512 * 2**20
    fake_cuda.free_bytes, fake_cuda.total_bytes = 79 * GIB, 80 * GIB
    assert read_budget("auto", "cuda", held_bytes=GIB) == 76 * GIB  # 5 % of 80 stay; what is held is in the reserved
    assert read_budget(0.5, "cuda") == 40 * GIB
    with pytest.raises(ValueError, match=r"at most the 85,899,345,920 bytes \(80\.0 GiB\) of cuda:1"):
        read_budget("81GiB", "cuda:1")
    fake_cuda.free_bytes, fake_cuda.total_bytes = 0, 20 * GIB
    with pytest.raises(ValueError, match=r"on cuda, but 1,073,741,824 bytes can be had and 1,073,741,824 are kept"):
        read_budget("auto", "cuda")


def test_a_share_of_the_device_that_torch_may_not_pass(fake_cuda: FakeCuda) -> None:
    fake_cuda.free_bytes, fake_cuda.total_bytes = 8 * GIB, 8 * GIB
    fake_cuda.get_per_process_memory_fraction = lambda device: 0.5  # type: ignore[attr-defined]
    assert read_budget("auto", "cuda") == 4 * GIB - 512 * 2**20


def test_a_device_that_shares_the_hosts_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert read_budget("auto", "mps") == 36 * GIB
