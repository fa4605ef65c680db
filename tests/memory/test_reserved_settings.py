from __future__ import annotations

import pytest
import torch

from lightning_gnnopt.memory import reserved_settings
from lightning_gnnopt.memory.cuda_allocator import simulate
from lightning_gnnopt.memory.reserved_settings import AllocatorSettings

MIB = 2**20


def test_nothing_is_set() -> None:
    assert AllocatorSettings.parse("") == AllocatorSettings()
    assert AllocatorSettings().options == {
        "expandable_segments": False,
        "max_split_bytes": None,
        "roundup_power2_divisions": (1,),
    }


def test_all_that_counts() -> None:
    text = " backend : native, expandable_segments:True,max_split_size_mb: 64 ,roundup_power2_divisions:8 "
    expected = AllocatorSettings(expandable_segments=True, max_split_bytes=64 * MIB, roundup_power2_divisions=(8,))
    assert AllocatorSettings.parse(text) == expected
    assert AllocatorSettings.parse("backend:cudaMallocAsync").backend == "cudaMallocAsync"


@pytest.mark.parametrize(
    "text",
    [
        "garbage_collection_threshold:0.8,pinned_use_background_threads:True,future:[1:2,3:4],other",
        "expandable_segments:False",
        "expandable_segments:maybe",
        "expandable_segments",
        "max_split_size_mb:20",  # torch wants more than a shared segment
        "max_split_size_mb:many",
        "max_split_size_mb:-1",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:[4:3]",
        "roundup_power2_divisions:[5:2]",
        "roundup_power2_divisions:[x:2]",
        ",,:,[],::]",
    ],
)
def test_what_is_unknown_or_refused_is_passed_over(text: str) -> None:
    assert AllocatorSettings.parse(text) == AllocatorSettings()
    assert AllocatorSettings.parse(f"{text},max_split_size_mb:32").max_split_bytes == 32 * MIB


def test_later_pairs_count() -> None:
    text = "expandable_segments:True,max_split_size_mb:32,expandable_segments:False,max_split_size_mb:64"
    assert AllocatorSettings.parse(text) == AllocatorSettings(max_split_bytes=64 * MIB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Documented by torch: 1 step below 512 MiB, 2 below 1 GiB, 4 below 2 GiB, and 8 above.
        ("[256:1,512:2,1024:4,>:8]", (1,) * 9 + (2, 4) + (8,) * 5),
        ("[1:4,2:2]", (4, 2) + (1,) * 14),
        ("[>:4]", (4,) * 16),
        ("[1048576:4]", (4,) * 16),
        ("[4:2,16:8,>:1]", (2, 2, 2, 1, 8) + (1,) * 11),
    ],
)
def test_steps_by_size(text: str, expected: tuple[int, ...]) -> None:
    settings = AllocatorSettings.parse(f"roundup_power2_divisions:{text},max_split_size_mb:32")
    assert settings == AllocatorSettings(roundup_power2_divisions=expected, max_split_bytes=32 * MIB)
    assert simulate([("a", 1000)], **settings.options).peak_allocated_bytes == 1024


def test_elsewhere_segments_do_not_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserved_settings.sys, "platform", "win32")
    assert not AllocatorSettings.parse("expandable_segments:True").expandable_segments


def test_variables_and_what_torch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [""]
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: told[0], raising=False)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert AllocatorSettings.read() == AllocatorSettings()
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:32")
    assert AllocatorSettings.read() == AllocatorSettings(max_split_bytes=32 * MIB)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
    assert AllocatorSettings.read() == AllocatorSettings(max_split_bytes=64 * MIB)
    told[0] = "expandable_segments:True"
    assert AllocatorSettings.read() == AllocatorSettings(max_split_bytes=64 * MIB, expandable_segments=True)
    told[0] = "max_split_size_mb:128"
    assert AllocatorSettings.read() == AllocatorSettings(max_split_bytes=128 * MIB)
    monkeypatch.delattr(torch._C, "_accelerator_getAllocatorSettings")
    assert AllocatorSettings.read() == AllocatorSettings(max_split_bytes=64 * MIB)
