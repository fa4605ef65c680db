from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from lightning_gnnopt.loading.sharing import shared_on_machine
from tests.loading.sharing_child import DEGREE, NUM_NODES, RAW_BYTES, Raw, child

linux = pytest.mark.skipif(sys.platform != "linux", reason="anonymous files in memory and smaps are Linux's")
pytestmark = linux

RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each of four real processes found in each case; started once, since importing takes them seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.loading.sharing_child"])
    folder = str(tmp_path_factory.mktemp("group"))
    pipes, processes = [], []
    for rank in range(RANKS):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=child, args=(rank, RANKS, folder, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        for pipe in pipes:
            assert pipe.poll(150), "a process hangs"
        reports = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0] * RANKS
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()
    return {case: [report[case] for report in reports] for case in reports[0]}


def column(reports: list[dict[str, Any]], name: str) -> list[Any]:
    return [report.get(name) for report in reports]


@pytest.mark.parametrize("case", ["topology", "raw"])
def test_there_is_one_copy_on_each_machine(found: dict[str, list[dict[str, Any]]], case: str) -> None:
    reports = found[case]
    assert column(reports, "error") == [None] * RANKS
    assert column(reports, "calls") == [1, 0, 1, 0]
    assert column(reports, "warnings") == [[]] * RANKS
    if case == "raw":
        num_bytes, length = RAW_BYTES, RAW_BYTES // 8
        expected = length * (length - 1) // 2
    else:  # 48,271 is odd, so that every block of 2**20 edges has every node once
        num_bytes, length = 4 * NUM_NODES * DEGREE, NUM_NODES * DEGREE
        expected = DEGREE * NUM_NODES * (NUM_NODES - 1) // 2
    assert column(reports, "length") == [length] * RANKS
    assert column(reports, "sum") == [expected] * RANKS

    mappings = column(reports, "mapping")
    files = column(mappings, "file")
    assert files[0] == files[1] != files[2] == files[3]
    for mapping in mappings:
        assert num_bytes <= mapping["Rss"] < num_bytes + 2**20
        assert mapping["Private_Dirty"] < 2**16
        assert 0.49 < mapping["Pss"] / mapping["Rss"] < 0.51  # the kernel halves what two processes map


def test_an_error_is_raised_on_all_ranks_of_all_machines(found: dict[str, list[dict[str, Any]]]) -> None:
    errors = column(found["error"], "error")
    told = (
        "Rank 2 failed to make what the processes of machine 1 share: ValueError: `x` is missing in rank 2."
        " HINT: the output of that process has the traceback."
    )
    assert errors[2] == ("ValueError", "`x` is missing in rank 2.")
    assert [errors[rank] for rank in (0, 1, 3)] == [("RuntimeError", told)] * 3
    assert column(found["error"], "calls") == [1, 0, 1, 0]


def test_what_cannot_be_unpickled_is_an_error_on_all_ranks(found: dict[str, list[dict[str, Any]]]) -> None:
    kinds, texts = zip(*column(found["unreadable"], "error"), strict=True)
    assert kinds == ("RuntimeError", "ValueError", "RuntimeError", "ValueError")
    assert all("invalid literal for int()" in text for text in texts)
    assert column(found["unreadable"], "calls") == [1, 0, 1, 0]


def test_who_cannot_open_the_memory_makes_a_copy(found: dict[str, list[dict[str, Any]]]) -> None:
    reports = found["denied"]
    assert column(reports, "error") == [None] * RANKS
    assert column(reports, "calls") == [1, 1, 1, 1]
    assert column(reports, "sum") == [999 * 1000 // 2] * RANKS
    assert column(reports, "shared") == [True, False, True, False]
    ((warning,), *others) = column(reports, "warnings")
    assert others == [[]] * 3
    assert warning.startswith("2 of 4 processes could not map what another process of their machine shares, so they")
    assert "FileNotFoundError: The shared array of 1,000 <i8 at '/proc/" in warning
    assert warning.count("HINT:") == 1
    assert "HINT: run the processes of a machine as one user in one container or PID namespace" in warning


def test_an_error_in_that_copy_is_raised_on_all_ranks(found: dict[str, list[dict[str, Any]]]) -> None:
    kinds, texts = zip(*column(found["denied_error"], "error"), strict=True)
    assert kinds == ("RuntimeError", "RuntimeError", "RuntimeError", "KeyError")
    assert all("`x` is missing in rank 3." in text for text in texts)


def test_without_memory_to_share_each_process_of_the_machine_makes_a_copy(
    found: dict[str, list[dict[str, Any]]],
) -> None:
    reports = found["unshareable"]
    assert column(reports, "error") == [None] * RANKS
    assert column(reports, "calls") == [1, 1, 1, 0]
    assert column(reports, "shared") == [False, False, True, True]
    ((warning,), *others) = column(reports, "warnings")
    assert others == [[]] * 3
    assert warning.startswith("1 of 4 processes")
    assert "OSError: [Errno 28] No space left on device" in warning


def test_machines_may_have_different_numbers_of_processes(found: dict[str, list[dict[str, Any]]]) -> None:
    reports = found["uneven"]
    assert column(reports, "calls") == [0, 0, 1, 1]  # the third process has local rank 0
    assert column(reports, "shared") == [True, True, True, False]
    assert column(reports, "sum") == [999 * 1000 // 2] * RANKS
    assert len({mapping["file"] for mapping in column(reports, "mapping")[:3]}) == 1


def test_the_owner_keeps_it_until_all_have_mapped_it(found: dict[str, list[dict[str, Any]]]) -> None:
    assert column(found["late"], "calls") == [1, 0, 1, 0]


def test_objects_travel_through_gloo_whatever_the_backend(found: dict[str, list[dict[str, Any]]]) -> None:
    reports = found["not_gloo"]
    assert column(reports, "calls") == [1, 0, 1, 0]
    assert column(reports, "groups") == [["gloo"]] * RANKS
    assert column(reports, "destroyed") == [1] * RANKS


def test_a_process_that_is_alone_keeps_what_it_makes(tmp_path: Path) -> None:
    made = Raw(np.arange(3))
    assert shared_on_machine(lambda: made, node_rank=0, local_rank=0) is made
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert shared_on_machine(lambda: made, node_rank=0, local_rank=0) is made
    finally:
        dist.destroy_process_group()
