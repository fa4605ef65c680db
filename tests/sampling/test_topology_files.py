"""Topologies in files and in shared memory."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gnnopt.sampling import Topology, shared_arrays

from .reference import random_graph
from .topology_child import child, sample

linux = pytest.mark.skipif(sys.platform != "linux", reason="anonymous files in memory and smaps are Linux's")


def small(*, edge_ids: bool = True) -> Topology:
    return Topology.from_edge_index(random_graph(40, 300), 40, edge_ids=edge_ids)


def large() -> Topology:
    """About 80 MB: the source of edge e is e times an odd number, in a ring of 2**20 nodes of 18 in-edges each."""
    num_nodes, degree = 2**20, 18
    indices = (np.arange(num_nodes * degree, dtype=np.int64) * 48_271 % num_nodes).astype(np.int32)
    return Topology.from_csc(np.arange(num_nodes + 1) * degree, indices)


def assert_same(a: Topology, b: Topology) -> None:
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        assert np.array_equal(array, b.arrays[name])


@pytest.mark.parametrize("edge_ids", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_saved_topology_loads_as_it_was(tmp_path: Path, edge_ids: bool, mmap: bool) -> None:
    graph, folder = small(edge_ids=edge_ids), tmp_path / "below" / "graph"
    graph.save(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["graph"]  # no temporary folder stays
    loaded = Topology.load(folder, mmap=mmap, validate=True)
    assert_same(loaded, graph)
    assert sample(loaded, 1) == sample(graph, 1)
    assert (loaded.source is not None) == mmap
    assert loaded.share() is loaded if mmap else loaded.share().source is not None


def test_a_graph_without_nodes_or_edges_is_saved_and_shared(tmp_path: Path) -> None:
    nothing = Topology.from_csc([0], [], [])
    nothing.save(tmp_path / "nothing")
    assert_same(Topology.load(tmp_path / "nothing", validate=True), nothing)
    shared = nothing.share()
    assert_same(pickle.loads(pickle.dumps(shared)), nothing)


def test_64_bit_ids_are_saved_and_shared(tmp_path: Path) -> None:
    graph = small()
    wide = Topology(graph.indptr, graph.indices.astype(np.int64), graph.edge_ids.astype(np.int64))
    wide.save(tmp_path / "wide")
    shared = wide.share()
    for copy in (Topology.load(tmp_path / "wide"), shared, pickle.loads(pickle.dumps(shared))):
        assert_same(copy, wide)


def test_writing_to_a_mapped_array_changes_no_file(tmp_path: Path) -> None:
    small().save(tmp_path / "graph")
    bytes_before = (tmp_path / "graph" / "indices.npy").read_bytes()
    loaded, shared = Topology.load(tmp_path / "graph"), small().share()
    loaded.indices[:] = 0
    shared.indices[:] = 0
    assert (tmp_path / "graph" / "indices.npy").read_bytes() == bytes_before
    for source in (loaded, shared):
        assert_same(pickle.loads(pickle.dumps(source)), small())


def test_numba_sees_mapped_arrays_as_any_other(tmp_path: Path) -> None:
    """A read-only array would be another type, for which every kernel is compiled anew."""
    small().save(tmp_path / "graph")
    for graph in (Topology.load(tmp_path / "graph"), small().share()):
        for array in graph.arrays.values():
            assert array.flags.writeable
            assert array.flags.c_contiguous
            assert array.flags.aligned


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    small().save(tmp_path / "empty")
    with pytest.raises(FileExistsError, match=re.escape(f"but there is something at '{tmp_path / 'empty'}'. HINT:")):
        small().save(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="`path` must not exist yet"):
        small().save(str(tmp_path / "file"))
    assert_same(Topology.load(tmp_path / "empty"), small())


def test_of_two_who_save_at_once_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = np.save

    def save_meanwhile(path: Path, array: Any, **options: Any) -> None:
        write(path, array, **options)
        if path.name == "indptr.npy":
            monkeypatch.undo()
            small().save(tmp_path / "graph")

    monkeypatch.setattr(np, "save", save_meanwhile)
    with pytest.raises(FileExistsError, match="choose another folder"):
        large().save(tmp_path / "graph")
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
    assert_same(Topology.load(tmp_path / "graph"), small())


def test_a_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*args: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", no_space)
    with pytest.raises(OSError, match="no space left"):
        small().save(tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


def header(folder: Path, **changes: Any) -> None:
    entries = json.loads((folder / "topology.json").read_text())
    (folder / "topology.json").write_text(json.dumps({**entries, **changes}))


def cut(folder: Path) -> None:
    data = (folder / "indices.npy").read_bytes()
    (folder / "indices.npy").write_bytes(data[:-4])


HINT = "HINT: write the folder anew with `Topology.save`."


@pytest.mark.parametrize(
    ("spoil", "name", "found"),
    [
        (lambda folder: (folder / "topology.json").write_text("{"), "topology.json", "is not JSON"),
        (lambda folder: (folder / "topology.json").write_text("[]"), "topology.json", "has version None instead of 1"),
        (lambda folder: header(folder, version=2), "topology.json", "has version 2 instead of 1"),
        (lambda folder: header(folder, num_nodes="x"), "topology.json", "lacks an entry or has a wrong one (ValueErr"),
        (lambda folder: header(folder, arrays=["indptr"]), "topology.json", "lists the arrays ['indptr']"),
        (lambda folder: header(folder, num_edges=299), "indices.npy", "holds shape (300,) instead of (299,)"),
        (lambda folder: np.save(folder / "indptr.npy", np.zeros(41)), "indptr.npy", "holds float64 instead of int64"),
        (
            lambda folder: np.save(folder / "edge_ids.npy", np.zeros(300, np.uint8)),
            "edge_ids.npy",
            "holds uint8 instead of int32 or int64",
        ),
        (lambda folder: (folder / "indptr.npy").write_bytes(b"x" * 99), "indptr.npy", "is not a .npy file (the magic"),
        (cut, "indices.npy", "has 1,324 bytes instead of 1,328"),
    ],
)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_spoilt_folder_is_refused(tmp_path: Path, spoil: Any, name: str, found: str, mmap: bool) -> None:
    small().save(tmp_path / "graph")
    spoil(tmp_path / "graph")
    with pytest.raises(ValueError, match=re.escape(f"'{tmp_path / 'graph' / name}' {found}")) as caught:
        Topology.load(tmp_path / "graph", mmap=mmap)
    assert str(caught.value).endswith(HINT)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no '{tmp_path / 'none' / 'topology.json'}'.")):
        Topology.load(tmp_path / "none")
    small().save(tmp_path / "graph")
    (tmp_path / "graph" / "edge_ids.npy").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape("edge_ids.npy' is missing from the topology's folder. HINT")):
        Topology.load(tmp_path / "graph")


def test_only_a_full_check_looks_at_every_edge(tmp_path: Path) -> None:
    small().save(tmp_path / "graph")
    np.save(tmp_path / "graph" / "indices.npy", np.full(300, 40, np.int32))
    assert Topology.load(tmp_path / "graph").num_edges == 300
    message = f"'{tmp_path / 'graph'}' does not hold a graph: `indices` must hold node ids from 0 to 39 (40 nodes)"
    with pytest.raises(ValueError, match=re.escape(message)):
        Topology.load(tmp_path / "graph", validate=True)


def test_a_loaded_topology_pickles_as_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small().save("graph")
    dumped = pickle.dumps(Topology.load("graph"))
    assert len(dumped) < 2_000
    monkeypatch.chdir("/")
    assert_same(pickle.loads(dumped), small())

    (tmp_path / "graph").rename(tmp_path / "old")
    small().save(tmp_path / "graph")
    with pytest.raises(ValueError, match=r"holds another graph than when it was loaded. HINT: load it again."):
        pickle.loads(dumped)


def test_a_topology_in_memory_pickles_whole() -> None:
    for edge_ids in (False, True):
        copy = pickle.loads(pickle.dumps(small(edge_ids=edge_ids)))
        assert_same(copy, small(edge_ids=edge_ids))
        assert copy.source is None


@linux
@pytest.mark.parametrize("kind", ["shared", "loaded"])
def test_a_spawned_process_maps_the_same_memory(tmp_path: Path, kind: str) -> None:
    graph = large()
    assert graph.nbytes >= 64 * 2**20
    expected = int(graph.indptr.sum()) + int(graph.indices.sum()), sample(graph, 7)
    if kind == "shared":
        graph = graph.share()
    else:
        graph.save(tmp_path / "graph")
        graph = Topology.load(tmp_path / "graph")
    # A page that only one process has touched counts as its own: this one touches them all first.
    assert int(graph.indptr.sum()) + int(graph.indices.sum()) == expected[0]
    assert len(pickle.dumps(graph)) < 2_000

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(200)
    assert ours.recv() == "ready"
    ours.send(graph)
    assert ours.poll(100)
    total, grown, drawn = ours.recv()
    process.join(30)

    assert (total, drawn) == expected
    assert grown < graph.nbytes / 8
    assert process.exitcode == 0
    assert sample(graph, 7) == expected[1]  # the child took nothing with it


def shared_fds() -> list[str]:
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_exists(fd)]
    return [link for link in links if "gnnopt-" in link]


def fd_exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@linux
def test_shared_memory_goes_with_its_last_user() -> None:
    gc.collect()
    before = len(shared_fds())
    graph = small().share()
    dumped, copy = pickle.dumps(graph), pickle.loads(pickle.dumps(graph))
    assert len(shared_fds()) == before + 9  # per array one of the owner and one of each mapping
    del graph
    gc.collect()
    assert_same(copy, small())  # who has mapped it keeps it
    assert len(shared_fds()) == before + 3
    with pytest.raises(FileNotFoundError, match=r"is gone: the process that shared it has ended or dropped it\. HINT:"):
        pickle.loads(dumped)
    del copy
    gc.collect()
    assert len(shared_fds()) == before


@linux
def test_nobody_can_write_to_shared_memory() -> None:
    graph = small().share()
    path = graph.source.files["indices"].path
    file = os.open(path, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(file, b"1234")
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)
    os.close(file)
    assert_same(pickle.loads(pickle.dumps(graph)), small())


@linux
def test_a_path_that_stands_for_another_file_by_now_is_noticed(tmp_path: Path) -> None:
    first = small().share()
    known = first.source.files["indptr"]
    number = int(Path(known.path).name)
    del first
    gc.collect()
    (tmp_path / "other").write_bytes(b"x" * 8 * 41)  # of the same size
    other = os.open(tmp_path / "other", os.O_RDONLY)
    os.dup2(other, number)
    with pytest.raises(FileNotFoundError, match="is gone"):
        known.map()
    os.close(other)
    if other != number:
        os.close(number)


def test_without_anonymous_files_a_temporary_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(shared_arrays.tempfile, "tempdir", str(tmp_path))
    graph = small().share()
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["edge_ids", "indices", "indptr"]
    dumped = pickle.dumps(graph)
    assert len(dumped) < 2_000
    copy = pickle.loads(dumped)
    assert_same(copy, small())
    del graph
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    assert_same(copy, small())
    with pytest.raises(FileNotFoundError, match="is gone"):
        pickle.loads(dumped)


def test_a_forked_process_does_not_remove_its_parents_folder(tmp_path: Path) -> None:
    (tmp_path / "indptr").write_bytes(b"")
    shared_arrays._remove(tmp_path, os.getpid() + 1)
    assert (tmp_path / "indptr").exists()
    shared_arrays._remove(tmp_path, os.getpid())
    assert not tmp_path.exists()
