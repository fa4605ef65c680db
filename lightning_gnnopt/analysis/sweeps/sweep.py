"""How time and memory move with the size of batches, and with that of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch_geometric.data import Data

from lightning_gnnopt.analysis.records import PeakRecord, SweepRecord
from lightning_gnnopt.analysis.sweeps.sweep_points import Bench, MakeModel, explain_memory, failed, own_randomness
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.memory.oom import is_out_of_memory

OnPoint = Callable[[SweepRecord], object]


def sampling_sweep(
    data: Data | GraphDataModule,
    model: nn.Module | MakeModel,
    *,
    batch_sizes: Sequence[int],
    full_batch: bool = True,
    batches: int = 10,
    device: torch.device | str = "cpu",
    seed: int = 0,
    on_point: OnPoint | None = None,
    peaks: list[PeakRecord] | None = None,
    **loading: Any,
) -> list[SweepRecord]:
    """Train on batches of different sizes, and on the whole graph at once, and measure both.

    Batches are prepared in the thread that trains, so that sampling, slicing and training follow one another and can be
    compared. Each has exactly as many seeds as the point says; an epoch's remainder is left out. Steps run outside of a
    Trainer: `training_step`, backward, optimizer, in 32 bits. Some warm up, those that are timed come next, and the
    same batches are drawn again to measure peaks, since measuring takes time.

    A point that runs out of memory gets a record that says so, and the others go on. On a CPU the whole graph is not
    tried if, by what the largest batches took, it would not fit into the memory that is free.

    Args:
        data: The graph; or a DataModule, whose sampler, features and transforms are taken, and which stays as it is.
        model: A LightningModule, or a network with ``forward(x, edge_index)`` that `NodeClassifier` can wrap, which is
            copied; or a function that makes either for a `GraphDataModule`. A LightningModule must not need its Trainer
            in `training_step`.
        batch_sizes: Seeds per batch. What is above the number of training nodes is cut to it; no size is run twice.
        full_batch: Whether to run the whole graph as one batch, with all its edges and without sampling.
        batches: Batches of each point; of the full batch, which is always the same, three steps at most.
        device: Where to train.
        seed: Of weights, dropout, the order of seeds and the draws. The random state is left as it was.
        on_point: Called with each record as soon as it is there.
        peaks: Takes the peak of each measured step, so that their distribution is known too.
        **loading: Arguments of `GraphDataModule` where `data` is a graph: `sampler`, `num_neighbors`, ...

    Returns:
        A record for each point, `sweep` ``"batch_size"``, the full batch last.

    Raises:
        TypeError: If `data` is neither, or has several types of nodes.
        ValueError: If there are no training nodes, a number is below 1, nothing is asked for, the sampler itself says
            which seeds stand together (clusters), or an argument of `GraphDataModule` is wrong.

    Examples:
        >>> from lightning_gnnopt import NodeClassifier
        >>> model = NodeClassifier("sage", in_channels=64, out_channels=10, hidden_channels=16)
        >>> points = sampling_sweep(load_dataset("digits-knn"), model, batch_sizes=[64, 4096], batches=2)
        >>> [(point.sampler, point.value) for point in points]
        [('NeighborSampler', 64), ('NeighborSampler', 898), ('full', 898)]
    """
    _check_counts(batches=batches)
    for size in batch_sizes:
        _check_counts(batch_sizes=size)
    if not batch_sizes and not full_batch:
        raise ValueError("`batch_sizes` is empty and `full_batch` is False: there is nothing to run.")
    if isinstance(data, GraphDataModule):
        if loading:
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in loading)} must be left out where `data` is a DataModule, which has"
                " a sampler of its own. HINT: pass the graph instead."
            )
        datamodule = data
    else:
        datamodule = GraphDataModule(data, num_workers=0, **loading)
    device = torch.device(device)
    points = []
    with own_randomness(device, seed):
        bench = Bench.of(datamodule, model, device=device, batches=batches, seed=seed)
        for point in _sampling_points(bench, batch_sizes, full_batch=full_batch):
            points.append(point)
            if on_point is not None:
                on_point(point)
            if peaks is not None:
                peaks += bench.peaks
            bench.peaks.clear()
    return points


def graph_sweep(
    model: nn.Module | MakeModel,
    *,
    num_nodes: Sequence[int] = (4_096, 16_384, 65_536),
    avg_degrees: Sequence[float] = (4.0, 16.0, 64.0),
    fixed_num_nodes: int = 16_384,
    fixed_avg_degree: float = 16.0,
    batch_size: int = 1024,
    full_batch: bool = True,
    batches: int = 10,
    device: torch.device | str = "cpu",
    seed: int = 0,
    graph_options: Mapping[str, Any] | None = None,
    on_point: OnPoint | None = None,
    **loading: Any,
) -> list[SweepRecord]:
    """Train on R-MAT graphs of growing size, then of growing degree, and measure as :func:`sampling_sweep` does.

    Args:
        model: As for :func:`sampling_sweep`; a function is called for each graph.
        num_nodes: Nodes of the graphs that grow, with degree `fixed_avg_degree`.
        avg_degrees: Mean degrees of the graphs that become denser, with `fixed_num_nodes` nodes.
        fixed_num_nodes: See `avg_degrees`.
        fixed_avg_degree: See `num_nodes`.
        batch_size: Seeds per batch, cut to the number of training nodes.
        full_batch: Whether to run each graph as one batch, too.
        batches: Batches of each point.
        device: Where to train.
        seed: Of the graphs, and as for :func:`sampling_sweep`.
        graph_options: Further options of the dataset ``"rmat"``: `num_features`, `num_classes`, ...
        on_point: Called with each record as soon as it is there.
        **loading: Arguments of `GraphDataModule`: `sampler`, `num_neighbors`, ...

    Returns:
        A record or, with `full_batch`, two for each graph, `sweep` ``"num_nodes"`` or ``"avg_degree"``.

    Raises:
        ValueError: If nothing is asked for, a number is out of range, or a graph is too small for its degree.
    """
    _check_counts(batches=batches, batch_size=batch_size)
    graphs = [("num_nodes", float(nodes), nodes, fixed_avg_degree) for nodes in num_nodes]
    graphs += [("avg_degree", float(degree), fixed_num_nodes, degree) for degree in avg_degrees]
    if not graphs:
        raise ValueError("`num_nodes` and `avg_degrees` are both empty: there is no graph to run.")
    device = torch.device(device)
    points = []
    for sweep, value, nodes, degree in graphs:
        options = {**(graph_options or {}), "num_nodes": nodes, "avg_degree": degree}
        with own_randomness(device, seed):
            for point in _graph_points(options, model, batch_size, full_batch, batches, device, seed, loading):
                points.append(replace(point, sweep=sweep, value=value))
                if on_point is not None:
                    on_point(points[-1])
    return points


def _sampling_points(bench: Bench, batch_sizes: Sequence[int], *, full_batch: bool) -> Iterator[SweepRecord]:
    if batch_sizes and bench.groups_seeds:
        raise ValueError(
            f"`batch_sizes` must be empty with {bench.task.sampler('train')!r}, which says itself which seeds stand in"
            " a batch. HINT: sweep over the sampler's own sizes, a profile for each."
        )
    last: SweepRecord | None = None
    for size in dict.fromkeys(min(size, bench.num_train_nodes) for size in batch_sizes):
        point = bench.sampled(size)
        yield point
        last = last if point.error or (last is not None and last.edges > point.edges) else point
    if full_batch:
        yield bench.full(last)


def _graph_points(
    options: Mapping[str, Any],
    model: nn.Module | MakeModel,
    batch_size: int,
    full_batch: bool,
    batches: int,
    device: torch.device,
    seed: int,
    loading: Mapping[str, Any],
) -> Iterator[SweepRecord]:
    try:
        data = load_dataset("rmat", seed=seed, **options)
        datamodule = GraphDataModule(data, num_workers=0, **loading)
        bench = Bench.of(datamodule, model, device=device, batches=batches, seed=seed)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        yield failed("", 0, "full" if full_batch else "", int(options["num_nodes"]), 0, explain_memory(error))
        return
    yield from _sampling_points(bench, [] if bench.groups_seeds else [batch_size], full_batch=full_batch)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, but got {count}.")
