"""Training of one graph over several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor
from typing_extensions import override

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.parallel.balance import LearnedBalance
from lightning_gnnopt.parallel.channel import Channel, GroupChannel
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.part_data import PartData
from lightning_gnnopt.parallel.policies import NAMED, Policies, Policy
from lightning_gnnopt.parallel.probe import find_fault
from lightning_gnnopt.parallel.rebalancing import Rebalancing, WaitClock

REDUCTIONS = ("mean", "sum")
BALANCES = ("fixed", "learned")


class GraphParallelStrategy(DDPStrategy):
    """Train a full graph whose nodes are divided among processes, with an unmodified model of PyG layers.

    Each process computes the outputs of its own nodes; before each convolution it fetches the rows of those nodes of
    others that send to them, and in the backward pass their gradients go back. Norms over all nodes are taken over all
    processes. The gradients are those of one process with the whole graph, up to the order of floating-point sums.

    The loss of `training_step` is taken as the mean over the process's target nodes (those of its `train_mask`), and
    weighed by their number; its gradients are summed over processes, once after each backward pass. There is no DDP
    wrapper: a checkpoint is that of one process, and goes on with any number.

    Each process is its own node's process of ``torch.distributed``: gloo on CPUs, NCCL on CUDA. When this package has
    been imported, ``Trainer(strategy="gnn_halo")`` is short for it; ``"gnn_sar"``, ``"gnn_bns"``, ``"gnn_quantized"``
    ``"gnn_stale"`` and ``"gnn_columns"`` are short for it with that policy.

    Args:
        policy: What is fetched in training: :class:`Exact`, :class:`BNS`, :class:`Quantized`, :class:`Stale`, the name
            of one (``"exact"``, ``"bns"``, ...), or several that go together, such as ``[BNS(0.1), Quantized(8)]``.
        loss_reduction: Whether `training_step` returns the ``"mean"`` over the target nodes or their ``"sum"``.
        balance: ``"fixed"``: the graph stays as it was cut. ``"learned"``, or a :class:`LearnedBalance`: what each
            rank's steps take is measured, and nodes move from slow ranks to fast ones; rank 0 needs the whole graph.
        probe: Whether a first training step is tried out on a tiny graph, whole and in two parts. A model that does not
            give the same is refused, with the name of the module.
        exchange_timeout: Seconds that a process waits for the others in an exchange before it raises :class:`RankLost`;
            on CPUs. `timeout` is that of the process group: set-up, barriers, Lightning's own messages.
        **kwargs: Arguments of ``DDPStrategy``, such as `process_group_backend`, `timeout` and `start_method`.

    Raises:
        ValueError: If an argument is unknown; in a run, if a module cannot be computed on parts.
        RankLost: In a run, if another process has ended, or has not answered in time.

    Examples:
        >>> strategy = GraphParallelStrategy()
        >>> strategy.policy
        'exact'
    """

    strategy_name = "gnn_halo"

    def __init__(
        self,
        policy: str | Policy | Sequence[str | Policy] = "exact",
        *,
        loss_reduction: str = "mean",
        balance: str | LearnedBalance = "fixed",
        probe: bool = True,
        exchange_timeout: float | timedelta = 60.0,
        **kwargs: Any,
    ) -> None:
        policies = Policies.of(policy)
        if loss_reduction not in REDUCTIONS:
            raise ValueError(unknown_name("loss reduction", loss_reduction, REDUCTIONS))
        if isinstance(balance, str) and balance not in BALANCES:
            raise ValueError(unknown_name("balance", balance, BALANCES))
        super().__init__(**kwargs)
        self.policy, self.policies, self.loss_reduction = policy, policies, loss_reduction
        self.channel: Channel | None = None
        self._installed: Installed | None = None
        self._parts: dict[str, CurrentPart] = {}
        self._num_targets: dict[str, tuple[int, int]] = {}
        self._trainer: Any = None
        named = LearnedBalance() if balance == "learned" else None
        self.balance = named if isinstance(balance, str) else balance
        self._rebalancing: Rebalancing | None = None
        self._probes, self.exchange_timeout = probe, exchange_timeout

    @override
    def configure_ddp(self) -> None:
        """Instead of wrapping the model: have all processes start with the same weights."""
        assert self.model is not None
        _sync_module_states(self.model)

    @override
    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        self._trainer = trainer
        assert self.model is not None
        self.channel = group = GroupChannel(timeout=self.exchange_timeout)
        if self.balance is not None:
            self.channel = clock = WaitClock(group)
            self._rebalancing = Rebalancing(self.balance, clock, self.root_device)
        self._installed = Installed(self.model)

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._rebalancing is not None:
            self._rebalancing.next_step(self._trainer.datamodule)
        with self._on("train", args), self._timed():
            return super().training_step(*args, **kwargs)

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on("val", args):
            return super().validation_step(*args, **kwargs)

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on("test", args):
            return super().test_step(*args, **kwargs)

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on("predict", args):
            return super().predict_step(*args, **kwargs)

    @override
    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        own, total = self._num_targets["train"]
        share = own / total if self.loss_reduction == "mean" else 1.0
        before = self._take_gradients()
        with computing_on(self._parts["train"]), self._timed():  # a checkpointed layer computes again
            loss = super().backward(closure_loss * share, optimizer, *args, **kwargs)
        self._sum_gradients(before)
        return loss

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Average counts without rounding: Lightning weighs logged means by them, and parts differ in size."""
        is_count = isinstance(tensor, Tensor) and not tensor.is_floating_point() and reduce_op in ("mean", "avg")
        return super().reduce(tensor.double() if is_count else tensor, group, reduce_op)

    @override
    def teardown(self) -> None:
        if self._installed is not None:
            self._installed.remove()
        self._installed, self.channel, self._trainer, self._rebalancing = None, None, None, None
        self._parts.clear()
        self._num_targets.clear()
        super().teardown()

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        about = "One graph over several processes"
        strategy_registry.register(cls.strategy_name, cls, override=True, description=f"{about}, computed as in one")
        for name in NAMED.keys() - {"exact"}:
            strategy_registry.register(
                f"gnn_{name}", cls, override=True, description=f"{about}, with the policy {name!r}", policy=name
            )

    def _timed(self) -> AbstractContextManager[None]:
        return nullcontext() if self._rebalancing is None else self._rebalancing.timed()

    @contextmanager
    def _on(self, stage: str, args: Sequence[Any]) -> Iterator[None]:
        batch = args[0] if args else None
        if not isinstance(batch, PartData):
            raise TypeError(
                f"`GraphParallelStrategy` needs batches that are parts of a graph, but got a {type(batch).__name__}."
                " HINT: `trainer.fit(model, PartitionDataModule(data, folder=...))`."
            )
        assert self.channel is not None
        part = self._parts.get(stage)
        if part is None or part.plan.send_index is not batch.halo_send_index:
            part = CurrentPart(batch.plan, self.channel, batch.num_graph_nodes, policies=self.policies)
            self._parts[stage] = part
            own = batch.num_targets(stage)
            total = self.channel.sum(torch.tensor([own], dtype=torch.int64, device=batch.halo_send_index.device))
            self._num_targets[stage] = own, int(total)
            if stage == "train" and self._probes:
                self._probe(batch)
        # The number of the batch in the run, which a resumed one goes on with.
        part.start(self._trainer.fit_loop.total_batch_idx, training=stage == "train")
        with computing_on(part):
            yield

    def _probe(self, batch: PartData) -> None:
        """Refuse a model that is another one on parts; on all ranks, whichever finds it."""
        assert self.channel is not None
        assert self.lightning_module is not None
        fault = find_fault(self.lightning_module, batch)
        if int(self.channel.sum(torch.tensor([fault is not None], dtype=torch.int64, device=self.root_device))):
            raise ValueError(
                f"{type(self.lightning_module).__name__} cannot be trained on parts of a graph:"
                f" {fault or 'another process says which module is the reason'}."
                " HINT: exchange the module, or pass `probe=False` if a difference is meant to be."
            )

    def _parameters(self) -> list[torch.nn.Parameter]:
        assert self.model is not None
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _take_gradients(self) -> list[Tensor | None]:
        before = [parameter.grad for parameter in self._parameters()]
        for parameter in self._parameters():
            parameter.grad = None
        return before

    def _sum_gradients(self, before: Sequence[Tensor | None]) -> None:
        """Sum what the last backward pass gave over all processes, and add it to what was there."""
        assert self.channel is not None
        parameters = self._parameters()
        for dtype in dict.fromkeys(parameter.dtype for parameter in parameters):
            of_type = [(p, old) for p, old in zip(parameters, before, strict=True) if p.dtype == dtype]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p, _ in of_type]
            has_grad = torch.tensor([p.grad is not None for p, _ in of_type]).to(grads[0])
            flat = self.channel.sum(torch.cat([*(grad.reshape(-1) for grad in grads), has_grad]))
            *sums, counts = torch.split(flat, [*(grad.numel() for grad in grads), len(grads)])
            for (parameter, old), total, count in zip(of_type, sums, counts.tolist(), strict=True):
                if count:
                    total = total.view_as(parameter)
                    parameter.grad = total if old is None else old + total
                else:
                    parameter.grad = old


GraphParallelStrategy.register_strategies(StrategyRegistry)
