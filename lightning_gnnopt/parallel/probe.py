"""Whether a model computes on parts of a graph what it computes on the whole: tried out on a tiny one."""

from __future__ import annotations

import copy
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.installed import Installed, global_norm_of
from lightning_gnnopt.parallel.part_data import PartData
from lightning_gnnopt.parallel.parts import cut_graph
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks

MAX_NODES = 64
_COUNTED = 8  # nodes at least that are in a mask
_BAR = 1e-3  # of the largest value; float32 sums in another order are off by some 1e-6


@dataclass
class _Outputs:
    """What a step gave.

    Attributes:
        loss: Its loss, weighed.
        grads: Gradients by parameter.
        rows: Outputs of modules that have a row for each node: name, call, rows.
    """

    loss: float
    grads: dict[str, Tensor]
    nodes: Tensor
    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)


class ProbeError(Exception):
    """A step that could not be run on a tiny graph."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.name = name


def find_fault(module: L.LightningModule, batch: PartData) -> str | None:
    """Compare a training step on a tiny graph with the same step on two parts of it.

    The graph is some of the part's nodes with the edges between them. The step is run on copies of the module, so that
    nothing of it changes; in evaluation mode, and as in training where that draws no random numbers.

    Args:
        module: With `Installed` in it or not.
        batch: The part.

    Returns:
        What is wrong, with the name of the module; None if nothing is, or if the step cannot be run alone, of which
        there is a warning.
    """
    data = tiny_graph(batch)
    twin = twin_of(module)
    for training in (False, True):
        twin.train(training)
        try:
            whole = _run(twin, data, 1)
            again = _run(twin, data, 1, seed=1) if training else whole
        except ProbeError as error:
            rank_zero_warn(
                "Whether this model computes the same on parts of a graph could not be tried out, as its training step"
                f" does not run alone on {data.num_nodes} nodes ({error}). HINT: compare its outputs yourself, or make"
                " the step independent of the Trainer.",
                category=UserWarning,
            )
            return None
        if training and _compare(twin, whole, again) is not None:
            return None  # it draws random numbers: dropout, say
        try:
            halves = _run(twin, data, 2)
        except ProbeError as error:
            kind = _kind(twin, error.name)
            return f"'{error.name}' ({kind}) cannot be computed on a part of a graph: {error}"
        fault = _compare(twin, whole, halves)
        if fault is not None:
            return fault
    return None


def tiny_graph(batch: PartData) -> Data:
    """Take some of a part's nodes and the edges between them, with all attributes.

    A node that is in some mask is in all of them, and the others, which may have no label, in none.

    Args:
        batch: The part.
    """
    num_inner = int(batch.num_nodes or 0)
    source, target = batch.edge_index.cpu()
    counts = _counts(batch)
    within = ((source < num_inner) & (source != target)).nonzero().view(-1)[: 4 * MAX_NODES]
    nodes = torch.cat([counts.nonzero().view(-1)[:_COUNTED], source[within], target[within], torch.arange(num_inner)])
    nodes = torch.tensor(list(dict.fromkeys(nodes.tolist()))[:MAX_NODES], dtype=torch.long)
    nodes = nodes[
        torch.argsort(counts[nodes], descending=True, stable=True)
    ]  # dealt out, each part has some that count
    place = torch.full((max(num_inner, int(source.max()) + 1 if len(source) else 0),), -1)
    place[nodes] = torch.arange(len(nodes))
    edges = ((place[source] >= 0) & (place[target] >= 0)).nonzero().view(-1)
    data = Data(edge_index=place[batch.edge_index.cpu()[:, edges]], num_nodes=len(nodes))
    own = {"edge_index", "num_nodes", "n_id", "in_degree", "out_degree", "num_graph_nodes"}
    for name, value in batch.to_dict().items():
        if name in own or name.startswith("halo_"):
            continue
        if isinstance(value, Tensor) and batch.is_node_attr(name):
            value = counts[nodes] if name.endswith("_mask") else value.cpu()[nodes]
        elif isinstance(value, Tensor) and batch.is_edge_attr(name):
            value = value.cpu()[edges]
        data[name] = value
    return data


def _run(twin: L.LightningModule, data: Data, num_parts: int, *, seed: int = 0) -> _Outputs:
    """Run a step on all parts of a graph, and put together what it gave."""
    num_nodes = int(data.num_nodes or 0)
    batches = tiny_parts(data, num_parts)
    num_targets = [batch.num_targets("train") for batch in batches]

    def work(channel: ThreadChannel) -> _Outputs:
        batch = batches[channel.rank]
        nodes: Tensor = batch.n_id
        model = copy.deepcopy(twin)
        installed = Installed(model)
        current = CurrentPart(batch.plan, channel, num_nodes)
        current.start(0, training=False)
        try:
            with _recorded(model, len(nodes)) as (rows, place), computing_on(current), torch.enable_grad():
                try:
                    loss = loss_of_step(model, batch) * (num_targets[channel.rank] / sum(num_targets))
                    loss.backward()  # type: ignore[no-untyped-call]
                except threading.BrokenBarrierError:  # the other part has failed, and says why
                    raise
                except Exception as error:
                    raise ProbeError(place[-1] if place else "", error) from error
        finally:
            installed.remove()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return _Outputs(float(loss.detach()), grads, nodes, rows)

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        found = run_ranks(num_parts, work, timeout_s=60.0)
    names = {name for each in found for name in each.grads}
    total = _Outputs(
        sum(each.loss for each in found),
        {name: torch.stack([each.grads[name] for each in found if name in each.grads]).sum(0) for name in names},
        torch.arange(num_nodes),
    )
    for key, first in found[0].rows.items():
        if all(key in each.rows for each in found):
            rows = first.new_zeros(num_nodes, *first.shape[1:])
            for each in found:
                rows[each.nodes] = each.rows[key]
            total.rows[key] = rows
    return total


def _counts(batch: PartData) -> Tensor:
    """Which nodes are in some mask; all if that is no more than one."""
    masks = [value.cpu() for name, value in batch.to_dict().items() if name.endswith("_mask")]
    counts = torch.stack(masks).any(dim=0) if masks else torch.zeros(int(batch.num_nodes or 0), dtype=torch.bool)
    return counts if int(counts.sum()) > 1 else torch.ones_like(counts)


def tiny_parts(data: Data, num_parts: int) -> list[PartData]:
    """Deal the nodes of a tiny graph out to parts, in turn."""
    owner = torch.arange(int(data.num_nodes or 0)) % num_parts
    batches = []
    for part in cut_graph(data.edge_index.numpy(), owner.numpy(), num_parts):
        nodes, edges = torch.from_numpy(part.inner), torch.from_numpy(part.edge_id)
        own = Data()
        for name, value in data.to_dict().items():
            if isinstance(value, Tensor) and name != "edge_index":
                value = value[nodes] if data.is_node_attr(name) else value[edges] if data.is_edge_attr(name) else value
            own[name] = value
        batches.append(PartData.of(part, own))
    return batches


def loss_of_step(model: L.LightningModule, batch: PartData) -> Tensor:
    """Run a training step without its Trainer, and return its loss.

    Raises:
        TypeError: If it returns none.
    """
    takes_index = len(inspect.signature(model.training_step).parameters) > 1
    output = model.training_step(batch, 0) if takes_index else model.training_step(batch)
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise TypeError(f"it returns a {type(loss).__name__} instead of a loss")
    return loss


@contextmanager
def _recorded(model: nn.Module, num_rows: int) -> Iterator[tuple[dict[tuple[str, int], Tensor], list[str]]]:
    """Keep what modules give for each node, in the order of their calls, and where a step is."""
    rows: dict[tuple[str, int], Tensor] = {}
    place: list[str] = []
    calls: dict[str, int] = {}
    handles = []

    def before(name: str) -> Callable[..., None]:
        return lambda *_: place.append(name)

    def after(name: str) -> Callable[..., None]:
        def keep(_: Any, __: Any, output: Any) -> None:
            place.pop()
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.dim() and output.size(0) == num_rows:
                rows[name, calls[name]] = output.detach()

        return keep

    for name, child in model.named_modules():
        if isinstance(child, MessagePassing) or not list(child.children()):
            handles += [child.register_forward_pre_hook(before(name)), child.register_forward_hook(after(name))]
    try:
        yield rows, place
    finally:
        for handle in handles:
            handle.remove()


def _compare(twin: nn.Module, whole: _Outputs, halves: _Outputs) -> str | None:
    """Name the first module whose rows differ, or else say what does."""
    for (name, call), rows in whole.rows.items():
        other = halves.rows.get((name, call))
        if other is not None and rows.is_floating_point() and not _near(other, rows):
            off = float((other - rows).abs().max())
            return f"'{name}' ({_kind(twin, name)}) gives outputs that are off by up to {off:.2g} in two parts"
    if not _near(halves.loss, whole.loss):
        return (
            f"the loss is {halves.loss:.6g} in two parts instead of {whole.loss:.6g}, although all modules give the"
            " same: it, or a function in `forward`, looks at all nodes together"
        )
    # A gradient that is none, such as that of a bias before a norm, is rounding errors of the others.
    largest = max((float(grad.abs().max()) for grad in whole.grads.values() if grad.numel()), default=0.0)
    for name, grad in whole.grads.items():
        if name not in halves.grads or not _near(halves.grads[name], grad, least=_BAR * largest):
            return f"the gradient of '{name}' is another one in two parts"
    return None


def _near(one: Tensor | float, other: Tensor | float, *, least: float = 1e-6) -> bool:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    scale = max(least, float(other.abs().max())) if other.numel() else 1.0
    return one.shape == other.shape and (not other.numel() or float((one - other).abs().max()) <= _BAR * scale)


def twin_of(module: L.LightningModule) -> L.LightningModule:
    """Copy a module without its Trainer and what is installed in it, on the CPU, in float32; it logs nothing."""
    trainer, module._trainer = module._trainer, None
    try:
        twin = copy.deepcopy(module)
    finally:
        module._trainer = trainer
    for child in twin.modules():
        for name in ("propagate", "edge_updater", *(("forward",) if global_norm_of(child) else ())):
            vars(child).pop(name, None)
        if isinstance(child, MessagePassing):
            child._propagate_forward_pre_hooks.clear()
    twin.log = twin.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return twin.cpu().float()


def _kind(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name)).__name__
